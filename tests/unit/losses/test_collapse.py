"""The collapse guard: fires on the course of a collapse, silent on courses that are stable."""

import math

import pytest

from opd.losses.collapse import signs

GUARD = {
    "reference_steps": 10,
    "patience": 5,
    "length_ratio": 3.0,
    "repetition": 0.75,
    "entropy_rise_nats": 1.0,
    "top_mass_drop": 0.2,
}


def collapsing(steps: int) -> dict[str, list[float]]:
    """Length explodes and repetition goes from 0.51 over 0.79 to 1.0, as in Many Faces, A2."""
    ramp = [1 / (1 + math.exp(-(t - 60) / 5)) for t in range(steps)]
    return {
        "response_tokens": [1000 + 7000 * r for r in ramp],
        "repetition_ratio": [0.5133 + 0.4851 * r for r in ramp],
        "entropy_student_nats": [0.4 + 2.0 * r for r in ramp],
        "top_mass_student": [0.98 - 0.5 * r for r in ramp],
    }


def stable(steps: int) -> dict[str, list[float]]:
    """Lengths that double, entropy that falls, and noise."""
    wave = [math.sin(t) for t in range(steps)]
    return {
        "response_tokens": [1000 + 10 * t + 100 * w for t, w in enumerate(wave)],
        "repetition_ratio": [0.5 + 0.1 * w for w in wave],
        "entropy_student_nats": [0.6 - 0.004 * t for t in range(steps)],
        "top_mass_student": [0.97 + 0.01 * w for w in wave],
    }


def test_fires_on_a_collapse_and_names_the_signs() -> None:
    whole = collapsing(100)
    first = next(t for t in range(100) if signs({k: v[:t] for k, v in whole.items()}, GUARD))
    assert 55 < first < 75
    found = signs(whole, GUARD)
    assert [sign.split()[0] for sign in found] == [
        "length_ratio",
        "repetition",
        "entropy_rise_nats",
        "top_mass_drop",
    ]
    assert found[0] == "length_ratio 8 > 3"


def test_silent_on_a_stable_run() -> None:
    whole = stable(100)
    assert not any(signs({k: v[:t] for k, v in whole.items()}, GUARD) for t in range(101))


def test_one_bad_step_is_not_enough_and_limits_can_be_left_out() -> None:
    whole = stable(40)
    whole["repetition_ratio"][39] = 1.0
    assert signs(whole, GUARD) == []
    whole["repetition_ratio"][35:] = [1.0] * 5
    assert signs(whole, GUARD) == ["repetition 1 > 0.75"]
    assert signs(whole, {**GUARD, "repetition": None}) == []
    without = {key: value for key, value in GUARD.items() if key != "repetition"}
    assert signs(whole, without) == []


@pytest.mark.parametrize("steps", [0, 5, 14])
def test_silent_before_there_is_something_to_compare_with(steps: int) -> None:
    assert signs({"repetition_ratio": [1.0] * steps}, GUARD) == []
