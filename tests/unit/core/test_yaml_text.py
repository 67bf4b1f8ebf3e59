"""Both parsers of YAML read the same, and refuse the same."""

import re
import time
from pathlib import Path

import pytest
import yaml

from opd.core import files
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.schema import SafeLoader, load_yaml, read_yaml
from opd.stages import fresh, records

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda p: p.name)
def test_configs_are_read_as_the_slow_parser_reads_them(path: Path) -> None:
    text = path.read_text()
    assert repr(load_yaml(text)) == repr(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        *("a: 1e3", "a: 1.0e-6", "a: 0x10", "a: 1_000", "a: 08", "a: yes", "a: ~", "a: 2024-01-01"),
        *("a: &x {b: 1}\nc: {<<: *x, d: 2}", "- '1'", "", "a: ≈\n# ü", "a: |\n  b\n  c\n"),
    ],
)
def test_odd_values_too(text: str) -> None:
    assert repr(load_yaml(text)) == repr(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "{", "a: *x", "!!python/object/apply:os.getcwd []", "\ta: 1"]
)
def test_what_is_no_plain_yaml_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


LAYERS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
MERGED = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: t\nname: u\n", "line 2: the key 'name' stands there twice"),
        ("a: {b: 1, c: [1], b: 2}", "line 1: the key 'b' stands there twice"),
        ("name: &a [*a]", "line 1: 'a' contains itself"),
        ("models: &a\n  x: {y: *a}", "line 2: 'a' contains itself"),
        ("a: " + "[" * 100_000, "line 1: nested too deeply"),
        ("".join("\n" + " " * i + "a:" for i in range(200)), "line 102: nested too deeply"),
        ("a0: &a0 [1, 2, 3]\n" + LAYERS, "line 6: more than 200,000 values"),
        ("a0: &a0 {x: 1}\n" + MERGED, "line 7: more than 200,000 values"),
        (f"name: 1{'0' * 5000}", "4300 digits"),
        (b"# caf\xe9\nname: t", "utf-8"),
        ("name: t".encode("utf-16"), "utf-8"),
    ],
)
def test_what_would_end_the_interpreter_or_win_silently_is_one_line(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    start = time.process_time()
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        read_yaml(path)
    assert time.process_time() - start < 2 and "\n" not in str(error.value)


def test_keys_may_come_again_elsewhere() -> None:
    text = "a: &x {b: 1, c: [{b: 2}, {b: 3}]}\nb: *x\n1: x\n'1': y\nd: {<<: *x, b: 4}\n"
    assert load_yaml(text)["d"] == {"b": 4, "c": [{"b": 2}, {"b": 3}]}


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' * 500 + "1" + "}" * 500, "1" * 5000])
def test_json_that_would_end_the_interpreter_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"j\.json: not readable as JSON"):
        read_json(path)


def test_no_more_of_a_file_is_read_than_any_config_or_record_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 2 << 20)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(10**12)  # of which the disk holds nothing
    with pytest.raises(UserError, match=r"large: not readable as YAML \(it has more than 16 MiB\)"):
        read_yaml(path)
    with pytest.raises(UserError, match=r"large: not readable as JSON \(it has more than 2 MiB\)"):
        read_json(path)
    reason = "it has more than 2 MiB"
    assert records.load(path, records.Digest)[1] == (
        *(records.State.MODIFIED, "large", f"is no record ({reason})"),
    )
    assert fresh.read_plan(path) == (None, f"is no JSON ({reason})")


def test_libyaml_is_there() -> None:
    assert SafeLoader is yaml.CSafeLoader
