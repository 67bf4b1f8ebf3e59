"""Both parsers of YAML read the same, and refuse the same."""

from pathlib import Path

import pytest
import yaml

from opd.core.errors import UserError
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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands twice, in lines 1 and 3"),
        ("x:\n  - {lr: 1, k: 2, lr: 1}", "'lr' stands twice, in lines 2 and 2"),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2, b: 3}", "'b' stands twice, in lines 2 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, line: str) -> None:
    """What a merge brings in may be written over: that is what it is for."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"config.yaml: not readable as YAML \({line}\)"):
        read_yaml(tmp_path / "config.yaml")
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: *x") == {
        "a": {"b": 1}, "c": {"b": 2}, "d": {"b": 1},
    }  # fmt: skip


def test_libyaml_is_there() -> None:
    assert SafeLoader is yaml.CSafeLoader
