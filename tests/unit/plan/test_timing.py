"""Closed forms of time, held to sums, integrals, simulations and a counter of operations."""

import heapq
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.plan import timing
from opd.plan.timing import Model

pytestmark = pytest.mark.unit
# A device that takes no time for anything; tests change what they are about.
IDLE = timing.Device(
    memory=math.inf,
    sequences=256,
    bandwidth=math.inf,
    products=math.inf,
    disk=math.inf,
    iteration=0.0,
    token=0.0,
    launch=0.0,
    start=0.0,
    natural=math.inf,
)
LENGTHS = st.tuples(st.floats(1, 1e5), st.floats(0.05, 100))


@given(LENGTHS)
def test_moments_are_areas_under_the_share_still_going(drawn):
    limit, times = drawn
    natural, n = limit * times, 2000
    middles = (np.arange(n) + 0.5) * limit / n
    share = np.exp(-middles / natural)
    assert timing.mean(limit, natural) == pytest.approx(share.sum() * limit / n, rel=1e-3)
    square = (2 * middles * share).sum() * limit / n
    assert timing.mean_square(limit, natural) == pytest.approx(square, rel=1e-3)


def test_lengths_that_nothing_ends_are_the_limit():
    moments = [f(7.0, math.inf) for f in (timing.mean, timing.mean_square)]
    assert [*moments, timing.longest(5, 7.0, math.inf)] == [7, 49, 7]


@given(LENGTHS, st.integers(1, 8))
def test_the_longest_of_some_by_inclusion_and_exclusion(drawn, n):
    """The maximum is the alternating sum of minima; that of k ends k times as soon."""
    limit, times = drawn
    natural = limit * times
    minima = [timing.mean(limit, natural / k) for k in range(1, n + 1)]
    expected = sum((-1) ** k * math.comb(n, k + 1) * minima[k] for k in range(n))
    assert timing.longest(n, limit, natural) == pytest.approx(expected, rel=1e-6)


def test_the_longest_of_many_without_a_limit_is_a_harmonic_number():
    expected = 50 * sum(1 / k for k in range(1, 1001))
    assert timing.longest(1000, 1e7, 50.0) == pytest.approx(expected)


# Sampling


@pytest.mark.parametrize(
    ("n", "slots", "engines", "iterations"),
    [
        (3, 4, 1, 10),  # all at once
        (8, 4, 1, 20),  # one after the other in four places
        (10, 4, 1, 25),  # two and a half times
        (8, 4, 6, 20),  # engines do not wait for each other where all responses are as long
    ],
)
def test_iterations_of_responses_of_one_length(n, slots, engines, iterations):
    assert timing.queued(n, slots, 10, math.inf, engines) == iterations


@pytest.mark.parametrize(("n", "slots"), [(32, 64), (400, 32), (2288, 256)])
def test_iterations_of_a_queue_as_simulated(n, slots):
    """The next response begins where one has ended; the last one that ends counts."""
    generator, limit, natural = np.random.default_rng(0), 2000.0, 1000.0
    ends = []
    for _ in range(100):
        places = [0.0] * slots
        for length in np.minimum(generator.exponential(natural, n), limit):
            heapq.heapreplace(places, places[0] + length)
        ends.append(max(places))
    assert timing.queued(n, slots, limit, natural) == pytest.approx(np.mean(ends), rel=0.07)


def test_several_engines_wait_for_the_longest_of_all():
    both = timing.queued(16, 64, 100, 80.0, engines=2)
    assert both == timing.longest(32, 100, 80.0) > timing.queued(16, 64, 100, 80.0)


def test_sequences_in_flight_are_what_the_cache_has_room_for():
    # Responses of 100 tokens have 50 on average while they are under way; after prompts of 10.
    assert timing.in_flight(6000, 2, 10, 100, math.inf) == 50
    assert timing.in_flight(6, 2, 10, 100, math.inf) == 1
    assert timing.in_flight(6000, 0, 10, 100, math.inf) == math.inf


# 3 responses of 100 tokens after prompts of 10, two in flight: 150 iterations, and 300 tokens with
# 10 + 50 tokens before them on average.
@pytest.mark.parametrize(
    ("device", "seconds"),
    [
        ({"iteration": 2.0}, 150 * 2),
        ({"token": 3.0}, 300 * 3),
        # Weights of 7 + 5 elements of two bytes in each iteration, and 11 of each token before.
        ({"bandwidth": 4.0}, (150 * 2 * 12 + 300 * 60 * 2 * 11) / 4),
        # Two operations a parameter and token; of prompts those of the layers, and attention.
        ({"products": 8.0}, (2 * 12 * 300 + 2 * 7 * 30 + 4 * 13 * 300) / 8),
        # Reading weights and products go on at the same time.
        (
            {"products": 8.0, "bandwidth": 1e9},
            (2 * 12 * 300 + 2 * 7 * 30 + 4 * 13 * 300) / 8 + 300 * 60 * 2 * 11 / 1e9,
        ),
    ],
)
def test_sampling_with_vllm_by_hand(device, seconds):
    model = Model(20, body=7, head=5, layers=3, query=13, cached=11)
    on = IDLE._replace(**device)
    took = timing.sampled_with_vllm(model, 2, 3, 2, 10, 100, on)
    assert took == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("device", "seconds"),
    [
        # Three responses in batches of two are two batches, of 100 iterations through three layers.
        ({"launch": 2.0}, 2 * 100 * 3 * 2),
        ({"bandwidth": 4.0}, (2 * 100 * 2 * 12 + 3 * 300 * 60 * 2 * 11) / 4),
        ({"products": 8.0}, (2 * 12 * 300 + 2 * 7 * 30 + 4 * 13 * 300) / 8),
    ],
)
def test_sampling_in_batches_by_hand(device, seconds):
    model = Model(20, body=7, head=5, layers=3, query=13, cached=11)
    on = IDLE._replace(**device)
    assert timing.sampled_in_batches(model, 2, 3, 2, 10, 100, on) == pytest.approx(seconds)


def test_a_batch_goes_on_with_all_until_its_longest_has_ended():
    on = IDLE._replace(products=1.0, natural=40.0)
    longest = timing.longest(4, 100, 40.0)
    took = timing.sampled_in_batches(Model(1, body=1), 2, 8, 4, 0, 100, on)
    assert took == pytest.approx(2 * 8 * longest)


# Reading and training


def test_operations_of_a_forward_pass_are_those_that_torch_counts():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from opd.plan.shape import from_config

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 96,
        "tie_word_embeddings": True,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, attn_implementation="eager"))
    shape = from_config({"model_type": "qwen3", **sizes})
    assert shape is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(torch.zeros(3, 50, dtype=torch.long))
    norms = 2 * (2 * 64 + 2 * 16)  # of both layers: parameters without products
    body, head = shape.layers * shape.layer - norms, shape.vocabulary * shape.hidden
    own = Model(shape.parameters, body, head, 2, shape.layers * shape.query)
    # Of positions, transformers turns a table of angles by one more product.
    assert timing.forward(own, 150, 3 * 50**2, 150) == pytest.approx(
        counted.get_total_flops(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("minutes", "step", "expected"),
    [
        (math.inf, 70.0, 5),
        (30, 70.0, 5),  # 1,800 s are 26 steps: every 20 are more often
        (30, 170.0, 9),  # 11 steps
        (1, 170.0, 100),
    ],
)
def test_checkpoints_of_a_run_of_100_steps(minutes, step, expected):
    assert timing.saved(100, 20, minutes, step) == expected


def test_inputs_that_do_not_depend_on_each_other_are_not_all_at_their_ends():
    together = timing.together([math.exp(0.3), math.exp(0.4), 1.0])
    assert together == pytest.approx(math.exp(0.5))
    assert timing.together([math.exp(-0.3), math.exp(-0.4)]) == pytest.approx(math.exp(-0.5))
    assert timing.together([1.0, 1.0]) == 1
