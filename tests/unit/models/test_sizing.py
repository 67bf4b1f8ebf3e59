"""What a token costs, and sizes that fit into minutes."""

import pytest

from opd.models import sizing

pytestmark = pytest.mark.unit


def test_a_processor_is_timed_and_a_gpu_is_not() -> None:
    """Of many rows a token costs less than of few, both within far limits."""
    measured = sizing.speed("cpu", 1)
    assert 1e-14 < measured.read < measured.sampled < 1e-8
    assert sizing.speed("cuda", 1) == sizing.Speed(1.8e-13, 0.9e-13)
    assert sizing.speed("cuda", 4) == pytest.approx(sizing.Speed(0.45e-13, 0.225e-13))


def test_minutes_are_those_of_both_kinds_of_tokens() -> None:
    speed = sizing.Speed(4e-9, 1e-9)
    parameters = 6e7 - sizing.BESIDES
    # 100 x 4e-9 x 6e7 and 200 x 1e-9 x 6e7 seconds.
    assert sizing.minutes(sizing.Tokens(100, 200), parameters, speed) == pytest.approx(36 / 60)


def test_sizes_are_halved_together_until_they_fit_or_are_the_least() -> None:
    least = {"a": 1, "b": 3}

    def product(sizes: sizing.Sizes) -> float:
        return sizes["a"] * sizes["b"] * sizes["c"]

    sizes = {"a": 8, "b": 8, "c": 5}
    assert sizing.fitting(sizes, least, product, 400) == (sizes, 320)
    assert sizing.fitting(sizes, least, product, 79) == ({"a": 2, "b": 3, "c": 5}, 30)
    assert sizing.fitting(sizes, least, product, 1) == ({"a": 1, "b": 3, "c": 5}, 15)
