"""Locking hub objects: what is asked, what is written, what is refused."""

from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

from opd.cli.main import main
from opd.core.errors import UserError
from opd.plan.artifacts import plan
from opd.plan.hub_lock import lock, read
from opd.recipes.resolve import resolve
from opd.rehearsal import hub

pytestmark = pytest.mark.unit
SHA = "0123456789abcdef" * 2 + "01234567"


def config(revision=None):
    return resolve(
        {
            "name": "t",
            "models": {"m": {"hub": {"id": "a/b", "revision": revision}}},
            "prompts": {"p": {"hub": {"id": "a/b", "revision": "main"}}},
        }
    )


def test_lock_writes_what_the_hub_says_and_plan_uses_it(tmp_path):
    asked = []

    def ask(kind, name, revision):
        asked.append((kind, name, revision))
        return SHA if kind == "models" else SHA[::-1], "open"

    path = tmp_path / "hub.lock.yaml"
    path.write_text(f"models/other: {SHA}\n")
    lock(config(), path, ask)
    assert asked == [("models", "a/b", None), ("datasets", "a/b", "main")]
    found = read(path)
    assert found == {"models/other": SHA, "models/a/b": SHA, "datasets/a/b": SHA[::-1]}
    made = plan(config(), found)
    assert made["models/m"].cfg["revision"] == SHA
    assert made["prompts/p"].cfg["source"]["revision"] == SHA[::-1]


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"- 1", b"a: [", b"models/a: main", b"models/a: {b: c}", f"a/b: {SHA[:-1]}".encode()],
)
def test_a_damaged_lock_is_one_line(tmp_path, text):
    path = tmp_path / "hub.lock.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"hub\.lock\.yaml: .*; take it from version control, or"):
        read(path)


def test_nothing_is_written_when_the_hub_does_not_answer(tmp_path):
    def ask(kind, name, revision):
        raise OSError("offline")

    commits, errors = lock(config(), tmp_path / "lock.yaml", ask)
    assert [error.where for error in errors] == ["models.m.hub", "prompts.p.hub"]
    assert "the hub has no answer for a/b at main (OSError)" in str(errors[1])
    assert commits == {} and list(tmp_path.iterdir()) == []


def test_where_the_lock_cannot_be_written_the_hub_is_not_asked(tmp_path):
    def ask(kind, name, revision):
        raise AssertionError("asked")

    with pytest.raises(UserError, match="run at the top of the repository"):
        lock(config(), tmp_path / "config" / "hub.lock.yaml", ask)


def test_what_is_gated_or_missing_is_named_at_once(tmp_path, monkeypatch, capsys):
    """By a hub and its real client: a line each; no commit is written that no hub has told, and
    none at all where one is missing."""
    names = ("models/a/b", "models/a/gone", "models/a/shut", "datasets/a/gone")
    commits = {name: hub.commit(name) for name in names}
    for name in ("models/a/b", "models/a/shut"):
        (tmp_path / "hub" / name).mkdir(parents=True)
        (tmp_path / "hub" / name / "config.json").write_text("{}")
    raw = {"name": "t", "models": {n: {"hub": {"id": f"a/{n}"}} for n in ("b", "gone", "shut")}}
    raw["prompts"] = {"p": {"hub": {"id": "a/gone"}}}
    path, locked = tmp_path / "c.yaml", tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(raw))
    command = ["lock", "--configfile", str(path), "--lock", str(locked)]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub.served(tmp_path / "hub", commits, gated={"models/a/shut"}) as address:
        api = partial(huggingface_hub.HfApi, endpoint=address)
        monkeypatch.setattr(huggingface_hub, "HfApi", api)
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 2 and not locked.exists()
        said = capsys.readouterr()
        lines = [line.partition(": ")[2].partition(":")[0] for line in said.err.splitlines()]
        assert lines == ["models.gone.hub", "prompts.p.hub", "models.shut.hub"] and not said.out
        assert "a/gone at its newest commit (RepositoryNotFoundError)" in said.err
        assert "a/shut is gated, and not open to you; accept the conditions" in said.err
        del raw["models"]["gone"], raw["prompts"]
        path.write_text(yaml.safe_dump(raw))
        with pytest.raises(SystemExit):
            main(command)
    assert read(locked) == {name: commits[name] for name in ("models/a/b", "models/a/shut")}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: models.shut.hub: a/shut is gated")


def test_settings_on_the_command_line_say_what_is_asked(tmp_path, monkeypatch, capsys):
    """As `opd plan` and snakemake take them: what a switch leaves out is not asked for."""
    asked = []

    class Hub:
        def repo_info(self, name, repo_type, revision, timeout):
            asked.append(name)
            return SimpleNamespace(sha=SHA, gated=False)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = {"released": {"hub": "a/trained"}, "sft": {"student": "base", "data": "d"}}
    models = {"base": {"hub": {"id": "a/base"}}, "m": model}
    given = {"name": "t", "models": models, "use_released": True}
    given["world"] = {"rl_times": 0.5, "other_times": 0.5}
    given |= {"sft_data": {"d": {"world": {"n": 9, "templates": ["{question}"]}}}}
    given["defaults"] = {"sft": {"steps": 1, "batch_size": 1, "lr": 1.0, "max_tokens": 9}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(given))
    command = ["lock", "--configfile", str(path), "--lock", str(tmp_path / "lock.yaml")]
    main(command)
    assert asked == ["a/base", "a/trained"]
    asked.clear()
    main([*command, "--config", "use_released=false"])
    assert asked == ["a/base"]
    assert capsys.readouterr().out.splitlines()[-1] == f"{SHA}  models/a/trained"
    with pytest.raises(SystemExit):
        main([*command, "--config", "seeds"])
    with pytest.raises(SystemExit):
        main(["lock", "--configfile", str(tmp_path / "none.yaml")])
    said = capsys.readouterr().err
    assert "error: --config: 'seeds' is no setting; write KEY=VALUE" in said
    assert f"error: {tmp_path / 'none.yaml'}: no such config; mend the path, or name" in said


def test_lock_that_contradicts_the_recipe_is_refused():
    assert plan(config(SHA[:7]), {"models/a/b": SHA})["models/m"].cfg["revision"] == SHA
    with pytest.raises(UserError, match="locked at"):
        plan(config("fedcba"), {"models/a/b": SHA})


def test_released_weights_are_locked_where_they_are_used(tmp_path):
    asked = []

    def ask(kind, name, revision):
        asked.append((kind, name, revision))
        return SHA, "open"

    raw = {
        "name": "t",
        "world": {"rl_times": 0.6, "other_times": 0.1},
        "sft_data": {"c": {"world": {"n": 8}}},
        "models": {
            "i": {"init": {}},
            "m": {
                "sft": {"student": "i", "data": "c", "steps": 1},
                "released": {"hub": "a/b", "revision": SHA[:5]},
            },
        },
    }
    lock(resolve(raw), tmp_path / "lock.yaml", ask)
    assert asked == []
    found, _ = lock(resolve({**raw, "use_released": True}), tmp_path / "lock.yaml", ask)
    assert asked == [("models", "a/b", SHA[:5])] and found == {"models/a/b": SHA}
