"""Reading YAML with libyaml's parser, where PyYAML was built with it: the other takes a quarter of
the time that planning the paper does."""

from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]


def load(text: str) -> Any:
    """What a YAML text holds: plain values only. Raises ``yaml.YAMLError`` where it is none."""
    return yaml.load(text, Loader=SafeLoader)
