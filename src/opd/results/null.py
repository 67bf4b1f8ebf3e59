"""What a quantity may be where nothing of what is claimed is there, and how often a test holds.

A claim whose test holds of such numbers, too, says nothing. The null of a quantity is not one
value, as zero is of a difference: a claim of no difference would always hold of that. It is any
number that the quantity can plausibly be, drawn for every arm and probe by itself, so that two that
are compared have nothing to do with each other. What is measured together is drawn together: the
numbers of one curve, or of one reading of the microscope, belong to each other as they do where
they are measured. docs/claims.md has the ranges in a table.

Draws follow from a seed and from what is drawn alone. R is the number of draws.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from opd.core.errors import UserError
from opd.core.text import suggestion
from opd.results import claim_spec
from opd.results.claim_spec import Test, quantities
from opd.results.estimate import at
from opd.results.quantity import MACRO, METRIC, POINTS, SCORES, Quantity, unit_of
from opd.stats.intervals import Array

DRAWS, SEED = 500, 0
# A test that holds of a larger share of draws says nothing.
MOST = 0.8
BENCHMARKS, NUMBERS, STEPS = ("a", "b", "c"), (1, 2, 3), 100

# Lowest and highest value by unit. Shares lie evenly in between, all others in their logarithm.
RANGES = {"share": (0.0, 1.0), "nats": (0.01, 10.0), "tokens": (10.0, 1e4), "": (0.01, 1e4)}
# How much a benchmark differs from the level of a model (standard deviation, part of the range).
BY_BENCHMARK = 0.05
# Noise of the steps of a run, as a part of the range: a standard deviation between these.
BY_STEP = (0.002, 0.05)
# Share of tokens where a teacher points to success, on correct and on incorrect paths.
ALIGNED = (0.25, 0.75)
PATHS, NODES = 20, 20
THRESHOLDS = {"positive": 0.0, "above": 0.3}


def _random(seed: int, *source: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32("\n".join(source).encode())])


def _within(unit: str, place: Array) -> Array:
    """Values at these places in the range of a unit, 0 at its lower and 1 at its upper end."""
    low, high = RANGES.get(unit, RANGES[""])
    place = np.clip(place, 0, 1)
    return low * (high / low) ** place if low else low + (high - low) * place


def values(quantity: Quantity, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Draws [R] of a quantity under its null, NaN where it means nothing."""
    if quantity.per:
        part, whole = replace(quantity, per=None), quantity.per
        return values(part, draws, seed) / _not_zero(values(whole, draws, seed))
    if quantity.less:
        part, whole = replace(quantity, less=None), quantity.less
        return values(part, draws, seed) - values(whole, draws, seed)
    if quantity.kind in SCORES:
        return _score(quantity, draws, seed)
    if quantity.kind == METRIC:
        curves = _curves(quantity.name, quantity.of, quantity.positions or "", draws, seed)
        return at(curves, quantity.at or "end")
    return _value(quantity, draws, seed)


def _not_zero(values: Array) -> Array:
    return np.where(values == 0, np.nan, values)


# Scores


def _score(quantity: Quantity, draws: int, seed: int) -> Array:
    kind, of, name = quantity.kind, quantity.of, quantity.name

    def level(unit: str, role: str = "", what: str = "") -> Array:
        """A number of an arm's model, or of another of its models: most of it is the model's, a
        little the benchmark's."""
        own = _random(seed, of, role, what).random(draws)
        names = BENCHMARKS if name == MACRO else (name,)
        parts = [_random(seed, of, role, what, n).normal(0, BY_BENCHMARK, draws) for n in names]
        return np.mean([_within(unit, own + part) for part in parts], axis=0)

    if kind == "p":
        return level("share", what="p")
    if kind in ("tokens", "length"):
        tokens = level("tokens", what="tokens")
        return tokens if kind == "tokens" else tokens / level("tokens", "base", "tokens")
    if kind in ("maj", "truncated"):
        return level("share", what=kind)
    accuracy = level("share")
    if kind in ("pass", "answered"):  # at least what is right on average
        return accuracy + (1 - accuracy) * level("share", what=kind)
    if kind == "avg":
        return accuracy
    base = level("share", "base")
    if kind == "change":
        return accuracy - base
    # Of a teacher that is ahead.
    return (accuracy - base) / _not_zero((1 - base) * level("share", "teacher"))


# Metrics of training


@lru_cache(maxsize=256)
def _curves(name: str, of: str, positions: str, draws: int, seed: int) -> Array:
    """Courses [R, steps] of a metric: from one level to another at some time, with noise."""
    rng = _random(seed, of, name, positions)
    start, end = rng.random((2, draws, 1))
    begins, ends = np.sort(rng.random((2, draws, 1)), axis=0)
    course = np.clip((np.linspace(0, 1, STEPS) - begins) / (ends - begins), 0, 1)
    least, most = BY_STEP
    spread = least * (most / least) ** rng.random((draws, 1))
    noise = spread * rng.normal(size=(draws, STEPS))
    curves = _within(unit_of(name), start + (end - start) * course + noise)
    return -curves if name.startswith("overlap_token_advantage") else curves


# Values of probes

_ALIGNMENT = re.compile(
    r"(cosine_spread)|(cosine|weighted_cosine|positive_ratio|signal|teacher_advantage"
    r"|(?:signal|kept|beats)_(?:positive|above)(?:_ratio)?)(_correct|_incorrect|_difference)?"
)
_CORRELATION, _CHANCE = r"rho_.*", r"auroc|p_.*|.*_p"  # from -1 to 1, and from 0 to 1
_LOG_RATIO, _CHANGE = r"log_ratio_.*", r"change_.*"  # of either sign


def _value(quantity: Quantity, draws: int, seed: int) -> Array:
    name, of = quantity.name, quantity.of
    if _ALIGNMENT.fullmatch(name):
        known = _alignment(of, draws, seed)
        if name not in known:
            raise UserError(f"no value '{name}'", f"probe {of}", suggestion(name, known))
        return known[name]
    first, second = _random(seed, of, name, quantity.at or "").random((2, draws))
    unit = unit_of(name)
    if re.fullmatch(_CORRELATION, name):
        return 2 * first - 1
    if unit == POINTS or re.fullmatch(_CHANGE, name):
        return first - second
    if re.fullmatch(_LOG_RATIO, name):
        return _within(unit, first) - _within(unit, second)
    return first if re.fullmatch(_CHANCE, name) else _within(unit, first)


def _tokens(of: str, draws: int, seed: int) -> tuple[Array, Array, Array]:
    """Alignment and success range of tokens [R, paths, nodes], and the teacher advantage of paths
    [R, paths]; half of the paths are correct. Tokens have nothing in common but how often a teacher
    points to success on paths of that kind, and the alignment of some is 1 or -1, as that of a
    token with two children is."""
    rng, shape = _random(seed, of), (draws, PATHS, NODES)

    def by_kind(low: float, high: float) -> Array:
        """A number of the correct and one of the incorrect paths, [R, paths]."""
        return np.repeat(rng.uniform(low, high, (draws, 2)), PATHS // 2, axis=1)

    size = np.where(rng.random(shape) < rng.random((draws, 1, 1)), 1.0, rng.random(shape))
    aligned = rng.random(shape) < by_kind(*ALIGNED)[:, :, np.newaxis]
    ranges = rng.random((draws, 1, 1)) * rng.random(shape)
    return np.where(aligned, size, -size), ranges, by_kind(-1, 1)


@lru_cache(maxsize=256)
def _alignment(of: str, draws: int, seed: int) -> Mapping[str, Array]:
    """Values [R] of a probe ``alignment`` or ``pool`` by name."""
    alignment, ranges, advantage = _tokens(of, draws, seed)
    signal = alignment * ranges
    paths = {
        "cosine": alignment.mean(axis=2),
        "weighted_cosine": signal.sum(axis=2) / ranges.sum(axis=2),
        "positive_ratio": (alignment > 0).mean(axis=2),
        "signal": signal.mean(axis=2),
        "teacher_advantage": advantage,
    }
    for name, threshold in THRESHOLDS.items():
        kept = alignment > threshold
        of_kept = (signal * kept).sum(axis=2) / _not_zero(kept.sum(axis=2))
        paths[f"signal_{name}"] = of_kept
        paths[f"kept_{name}_ratio"] = kept.mean(axis=2)
        paths[f"beats_{name}_ratio"] = np.where(
            np.isnan(of_kept), np.nan, of_kept > paths["signal"]
        )
    numbers = {"cosine_spread": alignment.std(axis=(1, 2))}
    for name, of_paths in paths.items():
        right, wrong = np.split(of_paths, 2, axis=1)
        numbers[name] = np.nanmean(of_paths, axis=1)
        numbers[f"{name}_correct"] = np.nanmean(right, axis=1)
        numbers[f"{name}_incorrect"] = np.nanmean(wrong, axis=1)
        numbers[f"{name}_difference"] = numbers[f"{name}_correct"] - numbers[f"{name}_incorrect"]
    return numbers


# Tests


def holds(test: Test, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Of which draws [R] a test holds, on every benchmark if it says so."""
    if test.all:
        return np.logical_and.reduce([holds(part, draws, seed) for part in test.all])
    each = any(quantity.each for quantity in quantities(test))
    names = BENCHMARKS if each else (MACRO,)
    return np.logical_and.reduce([_holds(test, name, draws, seed) for name in names])


def _holds(test: Test, benchmark: str, draws: int, seed: int) -> Array:
    def value(quantity: Quantity) -> Array:
        return values(replace(quantity, name=benchmark) if quantity.each else quantity, draws, seed)

    if test.greater:
        return value(test.greater.left) - value(test.greater.right) > test.greater.by
    if test.equivalent:
        apart = value(test.equivalent.left) - value(test.equivalent.right)
        return np.abs(apart) <= test.equivalent.within
    if course := test.rises or test.falls:
        change = value(course.of) - value(replace(course.of, at="start"))
        change = change if test.rises else -change
        return change >= course.by if course.by else change > 0
    if order := test.monotone:
        steps = np.diff([value(part) for quantity in order.of for part in _parts(quantity)], axis=0)
        steps = steps if order.direction == "rising" else -steps
        return np.logical_and.reduce(steps >= -order.slack if order.slack else steps > 0)
    if test.between:
        number = value(test.between.of)
        return (number >= test.between.low) & (number <= test.between.high)
    if test.at_least:
        return value(test.at_least.of) >= test.at_least.value
    assert test.at_most
    return value(test.at_most.of) <= test.at_most.value


def _parts(quantity: Quantity) -> list[Quantity]:
    """The values NAME_1, NAME_2, ... that NAME_* of a probe stands for."""
    if not quantity.several:
        return [quantity]
    return [replace(quantity, name=f"{quantity.name[:-1]}{number}") for number in NUMBERS]


class Accepted(NamedTuple):
    """How large a share of draws the test of a claim holds of, and each part of it."""

    claim: str
    share: float
    parts: list[float]

    def errors(self, where: str) -> list[str]:
        """What is wrong with the claim, a line each: its test, or else parts of it."""
        loose = [("its test", self.share)]
        if self.share <= MOST:
            loose = [(f"part {n} of its test", share) for n, share in enumerate(self.parts, 1)]
        remedy = "narrow it, or test more of what the statement says"
        return [
            f"{where}: claim {self.claim}: {what} holds of {share:.1%} of {DRAWS} random results; "
            f"{remedy}"
            for what, share in loose
            if share > MOST
        ]


def accepted(path: Path) -> Iterator[Accepted]:
    """The claims of a file in its order. Raises ``UserError`` where it is none."""
    for claim in claim_spec.parse(claim_spec.read_claims(path)["claims"]):
        shares = [float(holds(part).mean()) for part in claim.test.all or ()]
        yield Accepted(claim.id, float(holds(claim.test).mean()), shares)
