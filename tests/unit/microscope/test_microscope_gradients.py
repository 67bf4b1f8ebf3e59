"""Gradients of every method against numeric differences of its loss, and their signs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from opd.microscope import gradients
from opd.microscope.gradients import gradient

RNG = np.random.default_rng(0)
Z, W = RNG.normal(size=6), RNG.normal(size=6)  # logits of student and teacher
SUCCESS = RNG.random(6)
Array = np.ndarray


def log_softmax(z: Array) -> Array:
    return z - np.log(np.exp(z).sum())


def numeric(f: Callable[[Array], float], z: Array, step: float = 1e-6) -> Array:
    found = np.zeros_like(z)
    for i in range(len(z)):
        up, down = z.copy(), z.copy()
        up[i] += step
        down[i] -= step
        found[i] = (f(up) - f(down)) / (2 * step)
    return found


LOG_P, LOG_Q = log_softmax(Z), log_softmax(W)
P, Q = np.exp(LOG_P), np.exp(LOG_Q)


@pytest.mark.parametrize(
    ("f", "loss"),
    [
        # Of what is maximised the negative is the loss.
        (gradients.dr_grpo(SUCCESS), lambda z: -(np.exp(log_softmax(z)) @ SUCCESS)),
        (
            gradients.reverse_kl(LOG_P, LOG_Q),
            lambda z: np.exp(log_softmax(z)) @ (log_softmax(z) - LOG_Q),
        ),
        (gradients.forward_kl(LOG_P, LOG_Q), lambda z: Q @ (LOG_Q - log_softmax(z))),
    ],
)
def test_each_is_the_descent_of_its_loss(f: Array, loss: Any) -> None:
    found = gradient(P, f)
    np.testing.assert_allclose(found, -numeric(loss, Z), atol=1e-8)
    assert abs(found.sum()) < 1e-15


def test_forward_kl_is_the_difference_of_the_distributions() -> None:
    np.testing.assert_allclose(gradient(P, gradients.forward_kl(LOG_P, LOG_Q)), Q - P)


def test_the_papers_forward_kl_is_the_reverse_one() -> None:
    """KL(student || teacher), whatever it is called: P inside the logarithm and outside of it."""
    f = gradients.reverse_kl(LOG_P, LOG_Q)
    np.testing.assert_allclose(f, np.log(Q / P))
    printed = P * (np.log(P / Q) - P @ np.log(P / Q))  # the loss gradient, as Fig. 2 has it
    np.testing.assert_allclose(gradient(P, f), -printed)


# Estimates from rollouts, as the paper has them.


def single_sample(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """Weight of a sampled token in the single-sample estimate: log Q - log P - 1 (Eq. 2.9). As f it
    gives the gradient of ``reverse_kl``: the constant vanishes (B.10 to B.12)."""
    return gradients.reverse_kl(log_p, log_q) - 1


def rewards_to_go(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """MiniLLM's reward of each token of one rollout [T]: the sum of log Q - log P from it to the
    end (Eq. 2.10)."""
    return gradients.reverse_kl(log_p, log_q)[::-1].cumsum()[::-1]


def minillm(child: ArrayLike, rewards: ArrayLike, children: int) -> Array:
    """f of MiniLLM: the mean reward to go of the rollouts through each child [children].

    child and rewards [N]: which child of the node each rollout takes, and its reward to go there.
    NaN for a child that none takes.
    """
    taken = np.asarray(child)
    counts = np.bincount(taken, minlength=children).astype(np.float64)
    sums = np.bincount(taken, weights=np.asarray(rewards, dtype=np.float64), minlength=children)
    return np.divide(sums, counts, out=np.full(children, np.nan), where=counts > 0)


def of_samples(p: ArrayLike, child: ArrayLike, weights: ArrayLike) -> Array:
    """Mean over rollouts of weight x (one of the token taken - P) at one node [M], as the
    estimators of all these methods are built (Eqs. 2.4, 2.9, 2.10). Where rollouts take tokens as
    often as P says, it is ``gradient`` of the mean weight of each token.

    child and weights [N]: the token that each rollout takes, and an advantage (Dr. GRPO: reward
    less the mean reward), ``single_sample`` or reward to go.
    """
    p, w = np.asarray(p, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    taken = np.bincount(np.asarray(child), weights=w, minlength=len(p)) / len(w)
    return taken - p * w.mean()


def test_single_sample_in_the_mean_is_gkd_and_its_constant_vanishes() -> None:
    one_hot = np.eye(6)
    weights = single_sample(LOG_P, LOG_Q)
    each = weights[:, None] * (one_hot - P)  # of each token that may be sampled
    expected = gradient(P, gradients.reverse_kl(LOG_P, LOG_Q))
    np.testing.assert_allclose(P @ each, expected, atol=1e-12)
    np.testing.assert_allclose(gradient(P, weights), expected, atol=1e-12)
    np.testing.assert_allclose(weights, np.log(Q / P) - 1)


def samples(counts: Array) -> Array:
    return np.repeat(np.arange(len(counts)), counts)


def test_dr_grpo_of_rollouts_is_the_ideal_gradient() -> None:
    """Rollouts that take tokens exactly as often as P says, with binary rewards."""
    p = np.array([0.5, 0.3, 0.2])
    child = samples(np.array([50, 30, 20]))
    rewards = np.concatenate([np.arange(50) < 40, np.arange(30) < 6, np.arange(20) < 10])
    advantages = rewards - rewards.mean()
    success = np.array([40 / 50, 6 / 30, 10 / 20])
    expected = gradient(p, gradients.dr_grpo(success))
    np.testing.assert_allclose(of_samples(p, child, advantages), expected, atol=1e-12)
    # GRPO's division by the standard deviation changes the length only.
    scaled = of_samples(p, child, advantages / rewards.std())
    np.testing.assert_allclose(scaled, expected / rewards.std(), atol=1e-12)
    # With GRPO's length factor the form is lost, where length goes with success.
    lengths = np.where(child == 1, 3, 30)
    factored = of_samples(p, child, advantages / lengths)
    across = factored @ expected / np.linalg.norm(factored) / np.linalg.norm(expected)
    assert across < 0.99


def test_minillm_takes_the_mean_reward_to_go() -> None:
    log_p = np.log([0.5, 0.25, 0.5, 0.1])
    log_q = np.log([0.25, 0.5, 0.5, 0.2])
    to_go = rewards_to_go(log_p, log_q)
    np.testing.assert_allclose(to_go, np.log([1 / 2 * 2 * 2, 2 * 2, 2, 2]))
    child = samples(np.array([2, 1, 1]))
    f = minillm(child, [1.0, 3.0, -2.0, 0.5], 4)
    np.testing.assert_allclose(f[:3], [2.0, -2.0, 0.5])
    assert np.isnan(f[3])
    # The paper's estimate has reward to go - 1 as a weight: the constant vanishes.
    p = np.array([0.5, 0.25, 0.25])
    rewards = np.array([1.0, 3.0, -2.0, 0.5])
    expected = gradient(p, f[:3])
    np.testing.assert_allclose(of_samples(p, child, rewards), expected, atol=1e-12)
    np.testing.assert_allclose(of_samples(p, child, rewards - 1), expected, atol=1e-12)
    # At the last token of a rollout reward to go is the reward of that token: GKD.
    one = rewards_to_go(LOG_P[:1], LOG_Q[:1])
    np.testing.assert_allclose(one, gradients.reverse_kl(LOG_P, LOG_Q)[:1])


def test_several_nodes_at_once() -> None:
    starts = np.array([0, 3])
    p = np.array([0.2, 0.5, 0.3, 0.9, 0.1])
    f = np.array([1.0, 2.0, 0.0, 5.0, -1.0])
    whole = gradient(p, f, starts)
    np.testing.assert_allclose(whole[:3], gradient(p[:3], f[:3]))
    np.testing.assert_allclose(whole[3:], gradient(p[3:], f[3:]))
    np.testing.assert_allclose(gradients.totals(gradients.renormalised(p * 0.5, starts), starts), 1)


def test_a_token_that_the_student_hardly_gives_is_hardly_moved() -> None:
    """P gates every method, however much the teacher likes a token."""
    p, q = np.array([1 - 1e-6, 1e-6]), np.array([1e-3, 1 - 1e-3])
    g = gradient(p, gradients.reverse_kl(np.log(p), np.log(q)))
    assert 0 < g[1] < 1e-4
