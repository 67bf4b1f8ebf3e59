"""How long sampling and training take: closed forms, in seconds of one device.

Responses end by themselves at a constant rate, so their lengths are exponential, cut at a limit.
Work goes through two resources: bytes of memory (weights and cache, when tokens are sampled) and
floating-point operations (when sequences are read). docs/cost.md says where the constants are from.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

# Of Adam in float32, a parameter: weight, gradient and two moments read, all but the gradient
# written.
UPDATE_BYTES = 28
# How often transformers moves its cache for a token: read and written to make room, and read.
COPIED_CACHE = 3


class Device(NamedTuple):
    """A device and the software on it, at one end of what is uncertain.

    memory: bytes; sequences: the most that vLLM has in flight. Attained: bandwidth, bytes of memory
    a second; products, floating-point operations a second; disk, bytes a second. Seconds besides:
    iteration, of each of vLLM's; token, of each token in it; launch, of each layer that
    transformers goes through; start, until a stage begins. natural: mean tokens of responses that
    nothing cuts.
    """

    memory: float
    sequences: int
    bandwidth: float
    products: float
    disk: float
    iteration: float
    token: float
    launch: float
    start: float
    natural: float


class Model(NamedTuple):
    """What time depends on of a model: all of its parameters, those of its layers (body) and of its
    head; its layers, heads x width of all of them (query), and elements of a token's keys and
    values (cached)."""

    parameters: float
    body: float
    head: float = 0.0
    layers: int = 0
    query: float = 0.0
    cached: float = 0.0


# Lengths


def mean(limit: float, natural: float) -> float:
    """Mean tokens of responses that end by themselves at a constant rate, after ``natural`` tokens
    on average, and are cut at ``limit``."""
    return limit if math.isinf(natural) else natural * -math.expm1(-limit / natural)


def mean_square(limit: float, natural: float) -> float:
    """Mean square of the tokens of such responses."""
    if math.isinf(natural):
        return limit**2
    x = limit / natural
    return 2 * natural**2 * (1 - math.exp(-x) * (1 + x))


@cache
def longest(n: int, limit: float, natural: float) -> float:
    """Mean tokens of the longest of ``n`` such responses: that of one is at most t with 1 -
    exp(-t / natural), so of all with its n-th power, and the integral of the rest up to the limit
    is natural times the sum of u^k / k for k = 1 ... n, where u is the share that nothing cuts."""
    if math.isinf(natural):
        return limit
    finished, power, total = -math.expm1(-limit / natural), 1.0, 0.0
    for k in range(1, n + 1):
        power *= finished
        total += power / k
        if power < 1e-12:
            break
    return natural * total


# Sampling


def in_flight(room: float, of_token: float, prompt: float, limit: float, natural: float) -> float:
    """Sequences whose keys and values fit into ``room`` bytes, at ``of_token`` bytes a token, when
    each is as long as one that is under way is on average; at least one."""
    if not of_token:
        return math.inf
    under_way = prompt + mean_square(limit, natural) / 2 / mean(limit, natural)
    return max(1.0, room / of_token / under_way)


def queued(n: float, slots: float, limit: float, natural: float, engines: int = 1) -> float:
    """Iterations until the last of ``n`` responses of each of several ``engines`` has ended, where
    an engine works at ``slots`` at a time and takes the next one as soon as one has ended: what
    is full until the queue is empty, and then the longest of what all engines have left."""
    slots = min(n, slots)
    left = longest(max(1, round(slots * engines)), limit, natural)
    return (n - slots) / slots * mean(limit, natural) + left


def sampled_with_vllm(
    model: Model,
    width: int,
    n: float,
    slots: float,
    prompt: float,
    limit: float,
    on: Device,
    engines: int = 1,
) -> float:
    """Seconds until ``engines`` with ``n`` responses each have sampled all of them, from weights
    and cache of ``width`` bytes an element. Weights are read in each iteration, or the products of
    its tokens take longer; each token reads the keys and values of those before it."""
    tokens = n * mean(limit, on.natural)
    context = prompt * tokens + n * mean_square(limit, on.natural) / 2
    iterations = queued(n, slots, limit, on.natural, engines)
    weights = iterations * width * (model.body + model.head) / on.bandwidth
    products = 2 * (model.body + model.head) * tokens / on.products
    prompts = forward(model, n * prompt, n * prompt**2, 0) / on.products
    overhead = iterations * on.iteration + tokens * on.token
    cache = width * model.cached * context / on.bandwidth
    return overhead + max(weights, products) + cache + prompts


def sampled_in_batches(
    model: Model, width: int, n: float, batch: float, prompt: float, limit: float, on: Device
) -> float:
    """Seconds until transformers has sampled ``n`` responses in batches, each of which goes on with
    all of its sequences until its longest has ended."""
    waves = math.ceil(n / batch)
    iterations = longest(max(1, round(n / waves)), limit, on.natural)
    tokens = n * iterations
    weights = waves * iterations * width * (model.body + model.head) / on.bandwidth
    products = 2 * (model.body + model.head) * tokens / on.products
    context = tokens * (prompt + iterations / 2)
    cache = COPIED_CACHE * width * model.cached * context / on.bandwidth
    launched = waves * iterations * model.layers * on.launch
    prompts = forward(model, n * prompt, n * prompt**2, 0) / on.products
    return launched + max(weights, products) + cache + prompts


# Reading and training


def forward(model: Model, positions: float, squares: float, predicted: float) -> float:
    """Floating-point operations of a forward pass: 2 a parameter and position (of the head where
    tokens are ``predicted``; Kaplan et al. 2020, section 2.1), and 4 a channel of the queries and
    pair of positions, of which there are ``squares``."""
    return 2 * model.body * positions + 4 * model.query * squares + 2 * model.head * predicted


def saved(steps: float, every: float, minutes: float, step: float) -> int:
    """Checkpoints of a run whose steps take ``step`` seconds: one every so many steps, or at the
    end of a step where the last one is so many minutes old."""
    return math.floor(steps / math.ceil(min(every, 60 * minutes / step)))


def together(factors: Iterable[float]) -> float:
    """The factor of several inputs that do not depend on each other, all of which are at one end of
    their range, and each by itself has one of these ``factors``: their logarithms add up as squares
    do."""
    logarithms = [math.log(factor) for factor in factors]
    return math.exp(math.copysign(math.hypot(*logarithms), sum(logarithms)))
