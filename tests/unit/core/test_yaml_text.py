"""Both parsers of YAML read the same, and refuse the same."""

from pathlib import Path

import pytest
import yaml

from opd.core.schema import SafeLoader, load_yaml

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


def test_libyaml_is_there() -> None:
    assert SafeLoader is yaml.CSafeLoader
