"""Distillation from what was kept of a teacher: the run that the teacher itself would give."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from probing import padded, with_template
from safetensors.torch import load_file
from tiny import OPD, Inputs, Killed, course, files, generated, kill_at, run

from opd.core.errors import UserError
from opd.models import score
from opd.training import scored

ALL: list[dict[str, Any]] = [{"generations": "generations:0", "share": 1.0}]
CFG = {**OPD, "rollouts": ALL, "micro_batch": 4}
TAIL = {"preset": "tail_augmented", "support": "teacher", "k": 4}
# All of the vocabulary, as likeliest tokens.
FULL = {"preset": "teacher", "gradient": "direct", "k": 54}
METRICS = ("overlap_ratio", "top_mass_teacher", "entropy_student_nats", "log_ratio_other_nats")
LOSSES: dict[str, dict[str, Any]] = {
    "teacher": {"preset": "teacher", "k": 4},
    "many faces": {"preset": "many_faces_default", "k": 4},
    "tail": TAIL,
    "full": FULL,
    "sampled": {"preset": "sampled"},
    "k2": {"preset": "k2"},
}


def kept(given: Inputs, out: Path, k: int = 54) -> Path:
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir()
    named = {**given, "generations": given["generations:0"]}
    score.run({"k": k, "threads": 1}, named, out, scratch)
    return out


@pytest.fixture(scope="module")
def given(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Responses of the student, what the teacher makes of them, and of the teacher no weights."""
    folder = tmp_path_factory.mktemp("scored")
    made = generated(inputs["student"], inputs["prompts"], folder / "made")
    given = {**inputs, "generations:0": made}
    given["scores"] = kept(given, folder / "scores")
    shutil.copytree(inputs["teacher"], folder / "teacher")
    (folder / "teacher" / "model.safetensors").unlink()
    return {**given, "teacher": folder / "teacher", "live": inputs["teacher"]}


def apart(one: Path, other: Path) -> float:
    """The Euclidean distance between the weights of two models."""
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return sum(float((w - weights[1][n]).square().sum()) for n, w in weights[0].items()) ** 0.5


def test_a_small_tail_survives_the_rounding_of_the_rest() -> None:
    """Three tokens of 0.5, 0.3 and 0.2 less a tail of 1e-5: their rounded masses miss it by more
    than its size, as they are."""
    exact = torch.tensor([0.5, 0.3, 0.2 - 1e-5], dtype=torch.float64).log()
    row = {
        "ids": torch.tensor([4, 7, 2]),
        "log_probs": exact.half().float(),
        "sampled": torch.tensor([-0.5]),
        "tail": torch.tensor([1e-5]),
        "student_ids": torch.tensor([7, 3, 4]),
        "student_log_probs": torch.tensor([-1.0, -2.0, -3.0]),
    }
    rounded = exact.half().double().exp().sum()
    assert abs(1 - rounded - 1e-5) > 1e-5
    mask = torch.tensor([[True, False]])
    ids, log_probs, sampled, *named = scored.filled([row], mask, 3)
    assert named[0].tolist() == [[[7, 3, 4], [0, 0, 0]]]
    assert named[1].tolist() == [[[-1, -2, -3], [0, 0, 0]]]
    assert ids.tolist() == [[[4, 7, 2], [0, 0, 0]]] and sampled.tolist() == [[-0.5, 0]]
    assert float(-torch.expm1(log_probs[0, 0].logsumexp(-1))) == pytest.approx(1e-5, rel=0.02)
    assert (abs(log_probs[0, 0] - exact) <= 2 * abs(exact) / 2048).all()


@pytest.mark.parametrize("name", LOSSES)
def test_training_from_scores_is_training_with_the_teacher(
    given: Inputs, tmp_path: Path, name: str
) -> None:
    """On the same rollouts: within what rounding to float16 leaves, and for sampled tokens, which
    are not rounded, within float32's."""
    cfg = {**CFG, "loss": LOSSES[name]}
    live = {**given, "teacher": given["live"]}
    run("distill", cfg, live, tmp_path / "live")
    run("distill", {**cfg, "scores": "scores"}, given, tmp_path / "scored")
    losses = [course(tmp_path / which, "loss") for which in ("live", "scored")]
    norms = [course(tmp_path / which, "grad_norm") for which in ("live", "scored")]
    # Adam moves a weight by as much, however small its gradient: where that is rounding, too.
    share = apart(tmp_path / "live", tmp_path / "scored") / apart(
        given["student"], tmp_path / "live"
    )
    exact = name in ("sampled", "k2")
    assert losses[1] == pytest.approx(losses[0], abs=1e-6 if exact else 1e-4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5 if exact else 5e-3)
    assert share < (1e-4 if exact else 0.05)
    for metric in METRICS:
        ours, theirs = (course(tmp_path / n, f"offline_{metric}") for n in ("scored", "live"))
        assert len(ours) == 3 and ours[0] == pytest.approx(theirs[0], abs=1e-3), metric
    for absent in ("kl_nats", "entropy_teacher_nats", "entropy_gap_of_means_nats"):
        assert not course(tmp_path / "scored", f"offline_{absent}")


def test_the_default_loss_is_trained_from_scores_of_the_students_own_top_k(
    given: Inputs, tmp_path: Path
) -> None:
    """In the first step these are the student's that is trained; then the support stays behind."""
    named = {**given, "teacher": given["live"], "named_student": given["student"]}
    scores = kept(named, tmp_path / "scores", k=6)
    cfg = {**CFG, "loss": {"k": 4}}
    run("distill", {**cfg, "scores": "scores"}, {**given, "scores": scores}, tmp_path / "scored")
    run("distill", cfg, {**given, "teacher": given["live"]}, tmp_path / "live")
    losses, norms = (
        [course(tmp_path / which, name) for which in ("scored", "live")]
        for name in ("loss", "grad_norm")
    )
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_what_is_computed_in_bfloat16_is_trained_from_the_same_scores(
    given: Inputs, tmp_path: Path
) -> None:
    cfg = {**CFG, "loss": TAIL, "precision": "bfloat16", "steps": 1}
    run("distill", cfg, {**given, "teacher": given["live"]}, tmp_path / "live")
    run("distill", {**cfg, "scores": "scores"}, given, tmp_path / "scored")
    losses = [course(tmp_path / which, "loss") for which in ("live", "scored")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_term_of_scores_beside_a_reference_is_the_sum_with_its_teacher(
    given: Inputs, tmp_path: Path
) -> None:
    """And the short form is the sum of one term."""
    term = {"teacher": "teacher:0", "weight": 1.0, "loss": LOSSES["k2"]}
    own = {**term, "scores": "scores:0"}
    reference = {"reference": "student", "weight": 0.5, "loss": {"k": 4}}
    cfg = {key: value for key, value in CFG.items() if key != "loss"}
    inputs = {**given, "scores:0": given["scores"], "teacher:0": given["teacher"]}
    run("distill", {**cfg, "terms": [own]}, inputs, tmp_path / "one")
    run("distill", {**CFG, "loss": LOSSES["k2"], "scores": "scores"}, given, tmp_path / "short")
    assert apart(tmp_path / "one", tmp_path / "short") == 0
    run("distill", {**cfg, "terms": [own, reference]}, inputs, tmp_path / "scored")
    live = {**given, "teacher:0": given["live"]}
    run("distill", {**cfg, "terms": [term, reference]}, live, tmp_path / "live")
    rounding = apart(tmp_path / "scored", tmp_path / "live")
    assert rounding < 1e-4 * apart(given["student"], tmp_path / "live")
    assert rounding < 1e-2 * apart(tmp_path / "scored", tmp_path / "one")


def test_a_run_from_scores_that_is_killed_goes_on(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {**CFG, "loss": TAIL, "scores": "scores", "execution": {"checkpoint_every": 1}}
    run("distill", cfg, given, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(2, patch)
        run("distill", cfg, given, tmp_path / "killed")
    run("distill", cfg, given, tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_student_with_more_rows_is_cut_to_what_was_scored(given: Inputs, tmp_path: Path) -> None:
    cfg = {**CFG, "loss": FULL, "scores": "scores", "steps": 1}
    run("distill", cfg, given, tmp_path / "a")
    wide = padded(given["student"], tmp_path / "wide", rows=60)
    run("distill", cfg, {**given, "student": wide}, tmp_path / "b")
    assert course(tmp_path / "b", "loss") == pytest.approx(course(tmp_path / "a", "loss"), abs=1e-6)


def test_scores_that_are_not_of_the_run_are_refused(given: Inputs, tmp_path: Path) -> None:
    cfg = {**CFG, "loss": LOSSES["teacher"], "scores": "scores"}

    def refused(message: str, **changed: Path) -> None:
        out = tmp_path / f"out-{len([*tmp_path.iterdir()])}"
        with pytest.raises(UserError, match=message):
            run("distill", cfg, {**given, **changed}, out)
        assert not list(out.iterdir())

    longer = generated(given["student"], given["prompts"], tmp_path / "longer", max_new_tokens=5)
    other = kept({**given, "teacher": given["live"], "generations:0": longer}, tmp_path / "o")
    refused(r"row \d+: the teacher has read another response|another response", scores=other)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}="
    student = with_template(given["student"], tmp_path / "s", template)
    refused("the teacher has read another prompt", student=student)
    wide = {name: padded(given[name], tmp_path / name, rows=60) for name in ("student", "live")}
    whole = {**given, "student": wide["student"], "teacher": wide["live"]}
    refused(
        "the scores are over 60 tokens, the student learns 54", scores=kept(whole, tmp_path / "w")
    )
