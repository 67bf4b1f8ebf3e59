"""Distillation of a sum of terms: what it equals, what does not change it, what it refuses."""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from probing import padded
from safetensors.torch import load_file
from tiny import GRPO, OPD, WORLD, Inputs, Killed, course, files, kill_at, run

from opd.core import tables
from opd.core.errors import UserError
from opd.data import world
from opd.data.schemas import PROMPTS
from opd.training import terms

FULL = {"preset": "full"}
REWARD = {"reward": {"grader": "world"}, "weight": 1.0}
SUM = {key: value for key, value in OPD.items() if key != "loss"} | {"steps": 2}
# Every kind of term, and weights that look at all of a step.
FOUR: list[dict[str, Any]] = [
    {
        "teacher": "teacher:0",
        "loss": {"k": 4},
        "weight": 1.0,
        "where": {"source": "a"},
        "tokens": {"entropy": {"above_quantile": 0.5}, "drift": 0.5},
    },
    {
        "teacher": "teacher:1",
        "loss": FULL,
        "weight": 0.5,
        "where": {"source": ["b", "c"]},
        "information": [{"message": "say {question}"}],
    },
    {**REWARD, "weight": {"start": 1.0, "end": 0.5}, "tokens": {"linear": [1.0, 0.5]}},
    {
        "reference": "student",
        "loss": {"preset": "k3"},
        "weight": 0.01,
        "tokens": {"correct": {"grader": "world", "keep": "wrong"}, "prefix": 4},
    },
]


def teacher(name: str = "teacher:0", loss: Any = FULL, **more: Any) -> dict[str, Any]:
    return {"teacher": name, "loss": loss, "weight": 1.0, **more}


@pytest.fixture(scope="module")
def several(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """One teacher under two names, another one, and prompts of three sources."""
    folder = tmp_path_factory.mktemp("several")
    rows = [
        {**row, "source": "abca"[i % 4], "difficulty": None if i == 9 else 1.0}
        for i, row in enumerate(world.make_prompts(WORLD, "rl", 10))
    ]
    tables.write(folder / "prompts.parquet", rows, PROMPTS)
    own, other = inputs["teacher"], inputs["student"]
    models = {"teacher:0": own, "teacher:1": own, "teacher:2": other}
    return {"student": inputs["student"], "prompts": folder, **models}


def weights(out: Path) -> torch.Tensor:
    return torch.cat([w.flatten() for _, w in sorted(load_file(out / "model.safetensors").items())])


def difference(inputs: Inputs, ours: Path, theirs: Path) -> float:
    """Of two runs, as a share of what the second has changed."""
    start, one, other = map(weights, (inputs["student"], ours, theirs))
    assert (other - start).norm() > 0.005 * start.norm()
    return float((one - other).norm() / (other - start).norm())


def test_one_term_is_the_short_form(inputs: Inputs, several: Inputs, tmp_path: Path) -> None:
    """To the byte, with token weights that are all one, too."""
    short = {**several, "teacher": inputs["teacher"]}
    run("distill", {**OPD, "steps": 2, "micro_batch": 4}, short, tmp_path / "short")
    for name, more in (("plain", {}), ("weighted", {"tokens": {"linear": [1.0, 1.0]}})):
        cfg = {**SUM, "terms": [teacher(loss={"k": 4}, **more)], "micro_batch": 4}
        run("distill", cfg, several, tmp_path / name)
        ours, theirs = (
            (tmp_path / folder / "model.safetensors").read_bytes() for folder in (name, "short")
        )
        assert ours == theirs
        for metric in ("loss", "kl_nats", "overlap_ratio"):
            assert course(tmp_path / name, metric) == course(tmp_path / "short", metric)


@pytest.mark.parametrize(
    ("parts", "how"),
    [
        ([teacher(weight=0.3), teacher("teacher:1", weight=0.7)], "token_mean"),
        (
            [teacher(where={"source": "a"}), teacher("teacher:1", where={"source": ["b", "c"]})],
            "sequence_mean",
        ),
        ([teacher(weight=1.5), teacher("teacher:1", weight=-0.5)], "token_mean"),
    ],
    ids=["weights", "rows", "a negative weight"],
)
def test_a_checkpoint_as_two_teachers_is_one(
    several: Inputs, tmp_path: Path, parts: list[dict[str, Any]], how: str
) -> None:
    """Though the two take turns on the device and their states are kept: loss, gradient, and what
    they make of the student."""
    cfg = {**SUM, "micro_batch": 2, "aggregation": how}
    run("distill", {**cfg, "terms": [teacher()]}, several, tmp_path / "one")
    run("distill", {**cfg, "terms": parts}, several, tmp_path / "two")
    for name in ("loss", "grad_norm", "kl_nats"):
        ours, theirs = (course(tmp_path / folder, name) for folder in ("two", "one"))
        assert ours == pytest.approx(theirs, rel=1e-4), name
    assert difference(several, tmp_path / "two", tmp_path / "one") < 1e-4


def test_a_reward_alone_is_grpo(several: Inputs, tmp_path: Path) -> None:
    """The same rollouts, advantages and updates, to the byte; the teacher has no weight."""
    run("grpo", {**GRPO, "steps": 2, "micro_batch": 4}, several, tmp_path / "grpo")
    cfg = {**SUM, "terms": [teacher(weight=0.0), REWARD], "micro_batch": 4}
    run("distill", cfg, several, tmp_path / "sum")
    rewards = course(tmp_path / "sum", "term_1_reward")
    assert rewards == course(tmp_path / "grpo", "correct") and any(rewards)
    ours, theirs = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("sum", "grpo"))
    assert ours == theirs != (several["student"] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean"])
def test_four_terms_do_not_depend_on_the_cut(several: Inputs, tmp_path: Path, how: str) -> None:
    """Quantiles, scaled weights and advantages are those of the whole step."""
    for micro in (8, 2):
        cfg = {**SUM, "terms": FOUR, "micro_batch": micro, "aggregation": how}
        numbers = run("distill", cfg, several, tmp_path / str(micro))
    assert {"term_0_loss", "term_2_reward", "term_3_weight"} <= numbers["first"].keys()
    assert difference(several, tmp_path / "2", tmp_path / "8") < 1e-4
    for name in ("loss", "term_0_loss", "term_0_token_share", "term_3_loss", "kl_nats"):
        ours, theirs = (course(tmp_path / folder, name) for folder in "28")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6), name
    assert course(tmp_path / "8", "term_2_weight") == [1.0, 0.5]


def test_what_a_term_is_over_divides_by_all_tokens_of_the_step(
    several: Inputs, tmp_path: Path
) -> None:
    """Two halves of the rows, measured as shares of the tokens and of the loss of a whole."""
    parts = [teacher(where={"source": "a"}), teacher("teacher:1", where={"source": ["b", "c"]})]
    run("distill", {**SUM, "terms": parts, "steps": 1}, several, tmp_path / "a")
    shares = [course(tmp_path / "a", f"term_{i}_token_share")[0] for i in (0, 1)]
    assert 0 < shares[0] < 1 and sum(shares) == pytest.approx(1)
    losses = [course(tmp_path / "a", f"term_{i}_loss")[0] for i in (0, 1)]
    assert sum(losses) == pytest.approx(course(tmp_path / "a", "loss")[0], rel=1e-5)
    half = [teacher(tokens={"divergence": {"above_quantile": 0.5}})]
    run("distill", {**SUM, "terms": half, "steps": 1}, several, tmp_path / "b")
    assert course(tmp_path / "b", "term_0_token_share")[0] == pytest.approx(0.5, abs=0.05)
    share = course(tmp_path / "b", "term_0_loss_share")[0]
    # The loss is the divergence, of which the upper half of the tokens has more than half.
    whole = course(tmp_path / "b", "kl_nats")[0]
    assert share > 0.5
    assert course(tmp_path / "b", "loss")[0] == pytest.approx(share * whole, rel=1e-3)


def test_each_of_several_models_is_on_the_device_once_a_step(
    several: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads the rows of its own terms alone, each once."""
    from opd.training import distill, teachers

    held: list[str] = []
    read: Counter[str] = Counter()
    place: Callable[..., Any] = teachers.on_device
    hidden = distill.Trainer._hidden

    @contextmanager
    def spy(model: Any, device: Any) -> Any:
        held.append(f"{len(model.model.layers)} layers")
        with place(model, device):
            yield

    def reading(self: Any, model: Any, batch: Any, prompt: str) -> Any:
        who = "student" if torch.is_grad_enabled() else held[-1] if held else "student, ahead"
        read[who] += len(batch["completion_ids"])
        return hidden(self, model, batch, prompt)

    monkeypatch.setattr(teachers, "on_device", spy)
    monkeypatch.setattr(distill.Trainer, "_hidden", reading)
    parts = [teacher(where={"source": "a"}), teacher("teacher:2", where={"source": ["b", "c"]})]
    cfg = {**SUM, "terms": parts, "micro_batch": 2, "steps": 1}
    run("distill", cfg, several, tmp_path / "a")
    assert held == ["2 layers", "1 layers"]
    # Prompts of a, b, c, a, two rollouts each.
    assert read == {"student": 8, "2 layers": 4, "1 layers": 4}


def test_a_single_model_stays_on_the_device(
    several: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.training import teachers

    monkeypatch.delattr(teachers, "on_device")
    told = {"information": [{"message": "{prompt}!"}]}
    parts = [teacher(where={"source": "a"}), teacher(weight=0.5, **told)]
    cfg = {**SUM, "terms": parts, "steps": 1, "max_prompt_tokens": 32}
    run("distill", cfg, several, tmp_path / "a")


def test_heads_of_three_widths(several: Inputs, tmp_path: Path) -> None:
    """All are cut to what the narrowest has: the rows beyond change nothing."""
    reference = {"reference": "student", "loss": {"preset": "k3"}, "weight": 0.1}
    parts = [teacher(weight=0.5), teacher("teacher:2"), reference]
    run("distill", {**SUM, "terms": parts}, several, tmp_path / "plain")
    wider = {
        name: padded(several[name], tmp_path / name.replace(":", "-"), rows)
        for name, rows in (("student", 80), ("teacher:0", 90))
    }
    run("distill", {**SUM, "terms": parts}, {**several, **wider}, tmp_path / "a")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "plain"))


def test_a_sum_that_is_killed_goes_on(
    several: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {**SUM, "terms": FOUR, "micro_batch": 4, "execution": {"checkpoint_every": 1}}
    run("distill", cfg, several, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(1, patch)
        run("distill", cfg, several, tmp_path / "killed")
    run("distill", cfg, several, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_terms_by_prompt_set(several: Inputs, tmp_path: Path) -> None:
    """Two sets are mixed in the order of one that has the rows of both, and a set of its own is
    what its term is over: the teacher with no weight has the other's tokens."""
    rows = tables.read(several["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
    sets = {"prompts:first": rows[:3], "prompts:rest": rows[3:]}
    own = {name: path for name, path in several.items() if name != "prompts"}
    for name, part in sets.items():
        own[name] = tmp_path / name
        own[name].mkdir()
        tables.write(own[name] / "prompts.parquet", part, PROMPTS)
    cfg = {**SUM, "shuffle": True}
    run("distill", {**cfg, "terms": [teacher()]}, several, tmp_path / "one")
    parts = [teacher(where={"prompts": name}) for name in ("first", "rest")]
    run("distill", {**cfg, "terms": parts}, own, tmp_path / "two")
    assert difference(several, tmp_path / "two", tmp_path / "one") < 1e-4
    first, rest = (course(tmp_path / "two", f"term_{i}_token_share") for i in (0, 1))
    assert max(first) > 0 and max(rest) > 0
    assert [a + b for a, b in zip(first, rest, strict=True)] == pytest.approx([1.0, 1.0])


# What is refused before anything is trained


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [teacher(where={"domain": "a"})],
            r"terms.0.where.domain: prompts have no column 'domain'; there are id, question",
        ),
        (
            [teacher(), teacher(where={"source": ["x", "y"]})],
            r"terms.1.where.source: no prompt has 'x' or 'y'; there are 'a', 'b', 'c'",
        ),
        (
            [teacher(where={"difficulty": 1})],
            r"terms.0.where.difficulty: the prompt '\S+' has none; give every prompt a difficulty",
        ),
        ([teacher(loss={"k": 400})], r"terms.0: loss.k: k is 400, but .* only \d+ tokens"),
        ([teacher(loss={"k": 4, "support": "sampled"})], r"loss.k: support 'sampled' takes no k"),
    ],
)
def test_terms_that_do_not_fit(
    several: Inputs, tmp_path: Path, parts: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run("distill", {**SUM, "terms": parts}, several, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_a_row_need_not_have_what_the_teacher_of_others_is_told(
    several: Inputs, tmp_path: Path
) -> None:
    """And a teacher is told nothing of a row that it does not read."""
    rows = tables.read(several["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
    for row in rows:
        row["solution"] = "so" if row["source"] == "a" else None
    (tmp_path / "p").mkdir()
    tables.write(tmp_path / "p" / "prompts.parquet", rows, PROMPTS)
    told = {"information": [{"message": "{solution} {question}"}]}
    own = {**several, "prompts": tmp_path / "p"}
    parts = [teacher(where={"source": "a"}, **told), teacher("teacher:2", weight=0.5)]
    cfg = {**SUM, "terms": parts, "max_prompt_tokens": 32, "micro_batch": 2}
    numbers = run("distill", cfg, own, tmp_path / "a")
    assert numbers["first"]["term_0_loss"] > 0
    parts[0]["where"] = {"source": ["a", "b"]}
    with pytest.raises(UserError, match=rf"prompt {rows[1]['id']}: there is no solution to tell"):
        run("distill", cfg, own, tmp_path / "b")


def test_a_grader_needs_answers(several: Inputs, tmp_path: Path) -> None:
    rows = tables.read(several["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
    rows[3]["answer"] = " "
    (tmp_path / "p").mkdir()
    tables.write(tmp_path / "p" / "prompts.parquet", rows, PROMPTS)
    graded = {"tokens": {"correct": {"grader": "world", "keep": "right"}}}
    for parts in ([teacher(), REWARD], [teacher(**graded)]):
        cfg = {**SUM, "terms": parts}
        with pytest.raises(UserError, match=rf"prompt '{rows[3]['id']}' has no answer to grade"):
            run("distill", cfg, {**several, "prompts": tmp_path / "p"}, tmp_path / "a")


def test_prompts_of_no_term_are_told(
    several: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = {**SUM, "terms": [teacher(where={"source": "a"})], "steps": 1}
    run("distill", cfg, several, tmp_path / "a")
    assert "note: 5 of 10 prompts belong to no term: nothing is learnt" in capsys.readouterr().err


# Settings


def test_weights_go_linearly() -> None:
    assert [terms.weight_at(0.3, step, 5) for step in range(5)] == [0.3] * 5
    ramp = {"start": 1.0, "end": 0.0}
    assert [terms.weight_at(ramp, step, 5) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    early = {**ramp, "steps": 3}
    assert [terms.weight_at(early, step, 5) for step in range(5)] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert terms.weight_at(ramp, 0, 1) == 0.0


def test_terms_that_are_told_the_same_share_what_their_model_reads() -> None:
    told = {"information": [{"message": "{prompt}!"}]}
    read = terms.readings([teacher(), REWARD, teacher(**told), teacher(loss={"k": 2}), FOUR[3]])
    assert read[0] == read[3] and read[1] is None
    assert len({read[0], read[2], read[4]}) == 3
    assert terms.models([teacher(), REWARD, teacher(**told)]) == ["teacher:0"]
    assert not terms.keeps_states([teacher(), REWARD, teacher(**told)])
    assert terms.keeps_states([teacher(tokens={"entropy": {"above_quantile": 0.5}})])
    assert terms.keeps_states([teacher(), teacher("teacher:1")])
