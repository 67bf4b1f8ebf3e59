"""When a run looks like a collapse: a pure function of its metrics so far.

The Many Faces of OPD (A2): responses grow, repeat themselves and lose their mass on the top tokens
some time before the score falls.
"""

from collections.abc import Mapping
from statistics import median
from typing import Any


def signs(history: Mapping[str, list[float]], guard: Mapping[str, Any]) -> list[str]:
    """The signs of a collapse that all of the last ``patience`` steps show, as text; empty if there
    are none.

    history: the values of each metric over all steps so far that were measured. guard:
    ``length_ratio`` (response length over its median in the first ``reference_steps`` steps),
    ``repetition`` (repetition_ratio), ``entropy_rise_nats`` (entropy_student_nats above that
    median), ``top_mass_drop`` (top_mass_student below it); a limit that is None is not watched.
    There are no signs before the reference is complete.
    """
    reference, patience = guard["reference_steps"], guard["patience"]
    watched = {
        "response_tokens": ("length_ratio", lambda now, then: now / then if then else 0.0),
        "repetition_ratio": ("repetition", lambda now, then: now),
        "entropy_student_nats": ("entropy_rise_nats", lambda now, then: now - then),
        "top_mass_student": ("top_mass_drop", lambda now, then: then - now),
    }
    texts = []
    for name, (key, measure) in watched.items():
        limit, values = guard.get(key), history.get(name, [])
        if limit is None or len(values) < reference + patience:
            continue
        then = median(values[:reference])
        recent = [measure(value, then) for value in values[-patience:]]
        if min(recent) > limit:
            texts.append(f"{key} {recent[-1]:.3g} > {limit:g}")
    return texts
