"""What of a plan is there, and what a target or a claim needs of it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.core.errors import UserError
from opd.plan import show, state
from opd.plan.artifacts import plan
from opd.recipes.resolve import read, resolve
from opd.results.claim_spec import TARGETS
from opd.stages.artifact import Artifact, closure
from opd.stages.run import run_stage

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


# What is there


def tiny(**changes: Any) -> dict[str, Artifact]:
    raw = {
        "name": "tiny",
        "world": {"rl_times": 0.6, "other_times": 0.1},
        "prompts": {
            "p": {"world": {"split": "rl", "n": 6}},
            "f": {"path": {"file": "f.csv", "question": "q", "answer": "a"}},
            "u": {"use": "p", "sample": {"n": 4}},
        },
    }
    for key, value in changes.items():
        section, name = key.split("__")
        raw[section] = {**raw[section], name: value}
    return plan(resolve(raw), {})


def make(artifacts: dict[str, Artifact], results: Path, store: Path) -> None:
    for folder, one in artifacts.items():
        # Joined to an absolute path, a folder has no say.
        paths = [results / i for i in one.inputs]
        paths = [path if path.is_file() else path / "digest.json" for path in paths]
        run_stage(one.stage, one.cfg, paths, results / folder / "digest.json", {}, store)


def test_states_of_a_results_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_DATA_DIR", str(tmp_path))
    data = tmp_path / "f.csv"
    data.write_text("q,a\n1+1?,2\n")
    results, store = tmp_path / "results" / "tiny", tmp_path / "results" / ".store"
    p, f, u = "prompts/p", "prompts/f", "prompts/u"

    def states(where: Path = results, **changes: Any) -> dict[str, str]:
        made = tiny(**changes)
        return state.states(made, closure(made, made), where, store)

    assert states() == {p: "run", f: "run", u: "run"}
    make(tiny(), results, store)
    assert states() == {p: "there", f: "there", u: "there"}
    # Another config's results: all of it would be linked.
    assert set(states(results.parent / "other").values()) == {"store"}
    # An edit of the sample is one of that stage, an edit of the source one of all behind it.
    smaller = {"use": "p", "sample": {"n": 3}}
    assert states(prompts__u=smaller) == {p: "there", f: "there", u: "stale"}
    other = {"world": {"split": "rl", "n": 5}}
    assert states(prompts__p=other) == {p: "stale", f: "there", u: "stale"}
    assert state.counted(states(), results)[u]["prompts"] == 4
    data.write_text("q,a\n1+2?,3\n")
    assert states() == {p: "there", f: "stale", u: "there"}
    # The payload is gone from the results and the store.
    (results / u / "payload").unlink()
    assert states()[u] == "store"
    identity = json.loads((results / u / "digest.json").read_text())["identity"]
    (store / f"{identity}.json").unlink()
    assert states()[u] == "stale"


def test_a_run_without_the_steps_that_it_should_have_kept_runs_again(tmp_path):
    made = {"a": Artifact("figure", "a", {"execution": {}}, ())}
    identity = state.identity("figure", made["a"].cfg, {})
    (tmp_path / "store" / identity).mkdir(parents=True)
    (tmp_path / "store" / f"{identity}.json").write_text('{"outputs": {}}')
    states = [state.states(made, ["a"], tmp_path / "r", tmp_path / "store")]
    kept = {"a": Artifact("figure", "a", {"execution": {"keep_steps": [5]}}, ())}
    states.append(state.states(kept, ["a"], tmp_path / "r", tmp_path / "store"))
    (tmp_path / "store" / f"{identity}.steps").mkdir()
    (tmp_path / "store" / f"{identity}.steps" / "5.json").write_text("{}")
    states.append(state.states(kept, ["a"], tmp_path / "r", tmp_path / "store"))
    assert states == [{"a": "store"}, {"a": "run"}, {"a": "store"}]


def test_a_config_is_planned_by_the_lock_of_its_run(tmp_path, monkeypatch):
    """Which snakemake reads in config/, whatever lies beside the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    config = tmp_path / "mine" / "my.yaml"
    config.write_text("name: t\nmodels: {m: {hub: {id: a/b}}}\n")
    (tmp_path / "mine" / "hub.lock.yaml").write_text(f"models/a/b: {'a' * 40}\n")

    def revision() -> str:
        made = state.artifacts_of(read([config]), state.beside([config]))
        return made["models/m"].cfg["revision"]

    assert revision() == "a" * 40
    (tmp_path / "config").mkdir()
    assert revision() == "a" * 40  # that may be of anything else
    (tmp_path / "config" / "hub.lock.yaml").write_text(f"models/a/b: {'b' * 40}\n")
    assert revision() == "b" * 40


# Claims


def claimed(folder: Path) -> Path:
    """The miniature with arms and two claims, beside what `opd plan` reads."""
    config = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    success = {"label": "s", "model": "small-from-small-rl", "base": "small", "teacher": "small-rl"}
    config |= {"papers": ["p"], "evaluation": "held-out", "seeds": [3, 4, 5]}
    config |= {"experiments": "all", "probes": {}, "tables": {}, "targets": ["claims"]}
    config["arms"] = {"E04.success": success, "E05.union": {"label": "u", "model": "support-union"}}
    tests = {
        "recovers": {"at_least": {"of": {"recovery": "E04.success"}, "value": 0.8}},
        "rises": {"rises": {"of": {"metric": "overlap_ratio", "of": "E05.union"}, "by": 0.1}},
        "other": {"at_least": {"of": {"avg": "E13.success"}, "value": 0.8}},
    }
    said = {"section": "1", "figure": "fig06", "experiment": "E04", "statement": "It does."}
    claims = [{"id": name, **said, "test": test} for name, test in tests.items()]
    arms = dict.fromkeys(("E04.success", "E05.union", "E13.success"), "what it is")
    given = {"title": "P", "arms": arms, "claims": claims}
    row = dict.fromkeys(TARGETS, "-") | {"id": "R1"}
    curves = {"title": "t", "section": "1", "kind": "curves", "metrics": [{"name": "loss"}]}
    figures = {"fig06": {**curves, "series": [{"arm": "E04.success"}]}}
    for name in ("claims", "figures", "targets"):
        (folder / name).mkdir(parents=True)
    (folder / "claims" / "p.yaml").write_text(yaml.safe_dump(given))
    (folder / "figures" / "p.yaml").write_text(yaml.safe_dump(figures))
    (folder / "targets" / "p.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    (folder / "calibration.yaml").write_text((ROOT / "config" / "calibration.yaml").read_text())
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return folder / "c.yaml"


def folders(lines: Iterable[str]) -> list[str]:
    """What the list of jobs names."""
    _, _, listed = "\n".join(lines).partition("\nstate ")
    return [line.split()[-1] for line in listed.splitlines()[1:]]


def test_the_cheapest_part_that_decides_a_claim(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = claimed(tmp_path / "config")
    listed = folders(show.lines([path], [], "recovers", jobs=True))
    assert {f for f in listed if f.startswith("evaluations/")} == {
        f"evaluations/held-out/{model}/s3" for model in ("small", "small-rl", "small-from-small-rl")
    }
    assert {f for f in listed if f.startswith("models/")} == {
        f"models/{name}/s3" for name in ("small-init", "small", "small-rl", "small-from-small-rl")
    }
    # A metric needs the run alone.
    listed = folders(show.lines([path], [], "rises", jobs=True))
    assert "models/support-union/s3" in listed
    assert not any(folder.startswith("evaluations/") for folder in listed)
    with pytest.raises(UserError, match=r"needs E13\.success"):
        list(show.lines([path], [], "other"))
    with pytest.raises(UserError, match="did you mean 'recovers'"):
        list(show.lines([path], [], "recover"))
    given = yaml.safe_load(path.read_text())
    given["arms"]["E04.succes"] = given["arms"]["E04.success"]
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(
        UserError, match=r"arms: unknown arm 'E04\.succes'; did you mean 'E04\.success'"
    ):
        list(show.lines([path], [], "recovers"))


def test_a_claim_that_two_papers_have_is_named_with_its_paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = claimed(tmp_path / "config")
    given = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(given | {"papers": ["p", "q"]}))
    for file in [*path.parent.glob("*/p.yaml"), *path.parent.glob("*/p.csv")]:
        file.with_stem("q").write_text(file.read_text())
    said = yaml.safe_load((path.parent / "claims" / "q.yaml").read_text())
    rises = next(one for one in said["claims"] if one["id"] == "rises")
    said["claims"] = [{**rises, "id": "recovers"}, {**rises, "id": "alone"}]
    (path.parent / "claims" / "q.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(UserError, match=r"--claim recovers: .*write p/recovers or q/recovers"):
        list(show.lines([path], [], "recovers"))
    listed = folders(show.lines([path], [], "p/recovers", jobs=True))
    assert "models/small-from-small-rl/s3" in listed and "models/support-union/s3" not in listed
    for name in ("q/recovers", "alone"):
        listed = folders(show.lines([path], [], name, jobs=True))
        assert "models/support-union/s3" in listed and "models/small-rl/s3" in listed
        assert not any(folder.startswith("evaluations/") for folder in listed)


# Targets


def test_targets_restrict_the_plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [ROOT / "config" / "mini.yaml"]
    listed = folders(show.lines(configs, ["loss_form"], jobs=True))
    assert listed[-1] == "figures/loss_form"
    assert "models/top2-biased_topk/s0" in listed
    assert not any("large" in folder or "foreign" in folder for folder in listed)
    lines = list(show.lines(configs, ["models/foreign/s0"], gpus=2))
    assert lines[0] == "mini, models/foreign/s0: 3 of 3 jobs to run, on 2 x cpu"
