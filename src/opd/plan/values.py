"""The values that probes of the microscope can have. A claim or a figure that names another one
would be "not run" for ever."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import get_args

from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.probes import Measure
from opd.results.quantity import PROBE, Quantity

_MEASURES: tuple[str, ...] = get_args(Measure)
_OF_CELLS = (
    *_MEASURES,
    *("signal_positive", "signal_above", "kept_positive_ratio", "kept_above_ratio"),
    *("beats_positive_ratio", "beats_above_ratio"),
    *("rho_depth", "rho_kl_nats", "rho_js_nats", "rho_l2", "rho_similarity"),
)
_OF_ALIGNMENT = (
    *(f"{n}{side}" for n in _OF_CELLS for side in ("", "_correct", "_incorrect", "_difference")),
    *("cosine_spread", "nodes", "undefined", "paths", "questions"),
    *("cells_correct", "cells_incorrect"),
)
# By kind of probe; * stands for a context or a source of the config.
VALUES: Mapping[str, tuple[str, ...]] = {
    "alignment": _OF_ALIGNMENT,
    "pool": (
        *_OF_ALIGNMENT,
        *(f"p_{test}_{n}" for n in _MEASURES for test in ("welch", "paired", "cluster")),
        "teachers",
    ),
    "screening": (
        *("accuracy_*_ratio", "change_*", "with_*", "questions"),
        *("questions_easy", "questions_medium", "questions_hard"),
    ),
    "tree": (),
    "forecast": ("pairs",),
    "outcome": (
        *(form.format(n) for n in _MEASURES for form in ("rho_{}", "rho_{}_within", "p_{}")),
        "pairs",
    ),
}


def check_values(config: Config, named: Iterable[tuple[str, Quantity]]) -> None:
    """Hold the values of probes that a paper names (where, quantity) to the kinds that its probes
    have in a config. Raises ``UserError`` for one that no probe of the kind has."""
    for where, quantity in _of_probes(named):
        probe = config.probes.get(quantity.of)
        if probe is None or probe.kind not in VALUES:
            continue
        forms = VALUES[probe.kind]
        if not any(fnmatchcase(quantity.name, form) for form in forms):
            kind = f"value of the {probe.kind} {quantity.of}"
            raise unknown(quantity.name, forms, where, kind)


def _of_probes(named: Iterable[tuple[str, Quantity]]) -> Iterator[tuple[str, Quantity]]:
    for where, quantity in named:
        for part in quantity.parts:
            if part.kind == PROBE and not part.name.endswith("_*"):
                yield where, part
