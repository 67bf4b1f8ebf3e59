"""Both parsers of YAML read the same, and refuse the same."""

import re
import time
from pathlib import Path

import pytest
import yaml

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.core.schema import SafeLoader, load_yaml, read_yaml

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


def test_libyaml_is_there() -> None:
    assert SafeLoader is yaml.CSafeLoader
