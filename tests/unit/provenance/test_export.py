"""An exported crate holds what was asked for, says where it is from, and names nobody unasked."""

import hashlib
import json
import os
import subprocess
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from results import SVG, Results

from opd.core.errors import UserError
from opd.core.files import digest
from opd.plan import hub_lock
from opd.provenance import audit as audit_module
from opd.provenance import export as exporting
from opd.recipes import resolve
from opd.stages import check, on_disk
from opd.stages.on_disk import Made

ROOT = Path(__file__).parents[3]
HUB = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Fetched -> distill -> evaluate -> figure, a world model beside it, and a table of that."""
    made = Results(tmp_path)
    made.add(
        "fetch",
        "models/small",
        {"model.safetensors": "theirs", "config.json": "{}"},
        cfg={"hub": HUB, "revision": COMMIT},
    )
    made.add(
        "distill",
        "models/small-from-large/s0",
        {"model.safetensors": "weights", "metrics.parquet": "PAR1"},
        {"student": "models/small"},
        started="2026-01-02T03:04:05Z",
        seconds=3600.0,
    )
    made.add(
        "evaluate",
        "evaluations/math/small-from-large/s0",
        {"samples.parquet": "answers"},
        {"model": "models/small-from-large/s0"},
        started="2026-01-02T05:00:00Z",
        seconds=30.5,
    )
    made.add(
        "figure",
        "figures/fig05",
        {"figure.svg": SVG, "caption.md": "A caption"},
        {"it": "evaluations/math/small-from-large/s0"},
    )
    made.add("init", "models/other/s0", {"model.safetensors": "other", "config.json": "{}"})
    made.add("table", "tables/headline", {"table.csv": "a,b\n"}, {"it": "models/other/s0"})
    (made.root / "figures" / "fig05.svg").write_text(SVG)
    (made.root / "tables" / "headline.csv").write_text("a,b\n")
    (made.root / "logs" / "models").mkdir(parents=True)
    (made.root / "logs" / "models" / "small.log").write_text("fetched\n")
    (made.root / "config.yaml").write_text("name: mini\n")
    return made


def packed(results: Results, out: Path, *targets: str, **more: Any) -> tuple[set[str], dict]:
    """Export, and return the paths in the crate and its entities by id."""
    list(exporting.export(results.root, targets, out, workflow=ROOT, **more))
    if out.suffix == ".zip":
        with zipfile.ZipFile(out) as archive:
            names = {name for name in archive.namelist() if not name.endswith("/")}
            text = archive.read("ro-crate-metadata.json")
    else:
        names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        text = (out / "ro-crate-metadata.json").read_bytes()
    graph = json.loads(text)["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    return names, entities


def several(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def refs(value: Any) -> set[str]:
    """Ids that a property names."""
    return {one["@id"] for one in several(value)}


def test_all_of_it_is_packed_in_its_place_but_weights_and_what_was_fetched(results, tmp_path):
    names, _ = packed(results, tmp_path / "crate.zip")
    mine = {name for name in names if name.startswith("results/")}
    folders = [
        *("models/small", "models/small-from-large/s0", "models/other/s0", "figures/fig05"),
        *("evaluations/math/small-from-large/s0", "tables/headline"),
    ]
    expected = {f"results/mini/{f}/{n}.json" for f in folders for n in ("digest", "manifest")}
    expected |= {
        "results/mini/models/small-from-large/s0/payload/metrics.parquet",
        "results/mini/evaluations/math/small-from-large/s0/payload/samples.parquet",
        "results/mini/figures/fig05/payload/figure.svg",
        "results/mini/figures/fig05/payload/caption.md",
        "results/mini/figures/fig05.svg",
        "results/mini/models/other/s0/payload/config.json",
        "results/mini/tables/headline/payload/table.csv",
        "results/mini/tables/headline.csv",
        "results/mini/logs/models/small.log",
        "results/mini/config.yaml",
    }
    for name in ("models/small", "models/small-from-large/s0", "models/other/s0"):
        expected.add(f"results/mini/{name}/payload/model.safetensors.left-out")
    expected.add("results/mini/models/small/payload/config.json.left-out")
    assert mine == expected
    there = {"Snakefile", "LICENSE", "README.md", "config/mini.yaml", "src/opd/cli/main.py"}
    assert there | {"workflow/rules/stages.smk", "pyproject.toml"} <= names


def test_what_is_left_out_is_listed_with_digest_and_size_and_full_packs_it(results, tmp_path):
    _, entities = packed(results, tmp_path / "crate")
    place = "results/mini/models/small-from-large/s0"
    missing = entities[f"#{place}/payload/model.safetensors"]
    assert missing["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert missing["contentSize"] == "7" and "weights" in missing["description"]
    assert missing["@id"] in refs(entities[f"{place}/"]["hasPart"])
    readme = (tmp_path / "crate" / "README.md").read_text()
    assert f"{place}/payload/model.safetensors | 7 | {missing['sha256']}" in readme
    fetched = entities["#results/mini/models/small/payload/config.json"]
    assert "fetched where it came from" in fetched["description"]
    names, entities = packed(results, tmp_path / "full", full=True)
    assert f"{place}/payload/model.safetensors" in names
    assert entities[f"{place}/payload/model.safetensors"]["@type"] == "File"
    assert "results/mini/models/small/payload/config.json" in names
    assert "Not in this crate" not in (tmp_path / "full" / "README.md").read_text()


def test_large_files_are_left_out(results, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST_BYTES", 6)
    names, entities = packed(results, tmp_path / "crate")
    path = "results/mini/evaluations/math/small-from-large/s0/payload/samples.parquet"
    assert path not in names and entities[f"#{path}"]["contentSize"] == "7"


@pytest.mark.parametrize("target", ["fig05", "figures/fig05"])
def test_a_target_is_packed_with_all_behind_it_and_nothing_else(results, tmp_path, target):
    names, entities = packed(results, tmp_path / "crate", target)
    folders = {e["name"] for e in entities.values() if e["@type"] == "Dataset" and e["@id"] != "./"}
    assert folders == {
        *("models/small", "models/small-from-large/s0"),
        *("evaluations/math/small-from-large/s0", "figures/fig05"),
    }
    assert not any("other" in name or "headline" in name for name in names if "results" in name)
    assert "a part of it" in entities["./"]["name"]


def test_actions_say_what_was_made_of_what_by_which_verb_and_when(results, tmp_path):
    _, entities = packed(results, tmp_path / "crate")
    actions = {
        next(iter(refs(e["result"]))): e for e in entities.values() if e["@id"].startswith("#stage")
    }
    opd = actions["results/mini/models/small-from-large/s0/"]
    assert opd["instrument"] == {"@id": "#opd-distill"}
    assert refs(opd["object"]) == {"results/mini/models/small/"}
    assert opd["startTime"] == "2026-01-02T03:04:05+00:00"
    assert opd["endTime"] == "2026-01-02T04:04:05+00:00"
    assert entities["#opd-distill"]["name"] == "opd stage distill"
    assert entities["#opd-distill"]["isBasedOn"] == {"@id": "src/opd/training/distill.py"}
    assert "another one" in opd["description"]  # its manifest holds no digest of the code
    run = entities["#run"]
    assert refs(run["result"]) == {"results/mini/figures/fig05/", "results/mini/tables/headline/"}
    assert run["instrument"] == entities["./"]["mainEntity"] == {"@id": "Snakefile"}
    assert "results/mini/config.yaml" in refs(run["object"])
    assert run["startTime"] == "2026-01-02T03:04:05+00:00"
    assert run["endTime"] == "2026-01-02T05:00:30+00:00"
    steps = {
        next(iter(refs(e["object"]))) for e in entities.values() if e["@type"] == "ControlAction"
    }
    assert steps == {action["@id"] for action in actions.values()}


def test_what_one_run_has_made_for_two_folders_is_one_action(tmp_path):
    results = Results(tmp_path)
    for name in ("a", "b"):
        results.add("init", f"models/{name}/s0", {"config.json": "{}"}, identity="same")
    _, entities = packed(results, tmp_path / "crate")
    (action,) = [e for i, e in entities.items() if i.startswith("#stage-")]
    assert refs(action["result"]) == {f"results/mini/models/{n}/s0/" for n in "ab"}


def test_every_file_has_its_own_digest_and_every_name_leads_somewhere(results, tmp_path):
    names, entities = packed(results, tmp_path / "crate", full=True)
    files = {i: e for i, e in entities.items() if "File" in several(e["@type"])}
    listed = {unquote(i) for i in files} | {"ro-crate-metadata.json"}
    assert listed == names
    for identifier, entity in files.items():
        data = (tmp_path / "crate" / unquote(identifier)).read_bytes()
        if identifier != "README.md":
            assert entity["sha256"] == hashlib.sha256(data).hexdigest(), identifier
    for entity in entities.values():
        for key, value in entity.items():
            for one in several(value):
                if isinstance(one, dict) and not one["@id"].startswith("http"):
                    assert one["@id"] in entities, (entity["@id"], key)


def test_an_exported_folder_is_as_complete_as_what_it_was_made_of(results, tmp_path):
    packed(results, tmp_path / "crate", full=True)
    root = tmp_path / "crate" / "results" / "mini"
    made = on_disk.behind(Made(root, name) for name in ("figures/fig05", "tables/headline"))
    assert len(made) == 6
    assert not [finding for one in made for finding in check.shown(one)]
    (root / "figures/fig05/payload/caption.md").write_text("another")
    (finding,) = check.shown(Made(root, "figures/fig05"))
    assert finding.text == "modified: caption.md was changed"
    # and it can be exported again, to the same bytes
    (root / "figures/fig05/payload/caption.md").write_text("A caption")
    crate = tmp_path / "crate"
    list(exporting.export(root, [], tmp_path / "again", full=True, workflow=crate))
    for name in ("ro-crate-metadata.json", "README.md"):
        assert (tmp_path / "again" / name).read_text() == (crate / name).read_text()


def test_a_crate_is_complete_without_what_it_leaves_out(results, tmp_path):
    """A mark lies in its place; with another text it is none. A crate of a crate is alike."""
    texts = {"scores.parquet": "1", "responses.parquet": "a long text"}
    results.add("evaluate", "evaluations/m/x/s0", texts, {"model": "models/other/s0"})
    names, _ = packed(results, tmp_path / "crate", small=True)
    payload = "results/mini/evaluations/m/x/s0/payload"
    assert names & {f"{payload}/{name}" for name in texts} == {f"{payload}/scores.parquet"}
    assert f"{payload}/responses.parquet.left-out" in names
    root = tmp_path / "crate" / "results" / "mini"
    made = on_disk.behind(Made(root, name) for name in on_disk.folders(root))
    assert len(made) == 7 and not [finding for one in made for finding in check.shown(one)]
    text = "\n".join(audit_module.lines(audit_module.audit(root), "here", 1.0))
    # Two weights, two fetched files and the text.
    assert "not in this crate, and listed in its README.md: 5 files" in text
    again = tmp_path / "again"
    list(exporting.export(root, [], again, small=True, workflow=tmp_path / "crate"))
    assert {p.relative_to(again).as_posix() for p in again.rglob("*") if p.is_file()} == names
    mark = tmp_path / "crate" / payload / "responses.parquet.left-out"
    mark.write_text(mark.read_text().upper())
    assert [finding.text for finding in check.shown(Made(root, "evaluations/m/x/s0"))] == [
        "missing: responses.parquet is gone",
        "modified: responses.parquet.left-out was added",
    ]


def test_no_figure_table_or_claim_reads_what_a_small_crate_is_without():
    """But tables of responses, which show texts."""
    shown = [p.read_text() for p in Path(exporting.__file__).parents[1].glob("results/*.py")]
    read = {name for name in exporting.TEXTUAL if any(f'"{name}"' in text for text in shown)}
    assert read == {"responses.parquet"} and any('"rollouts.parquet"' in text for text in shown)


def test_of_weights_that_were_removed_as_planned_the_mark_is_packed(results, tmp_path):
    files = {"model.safetensors": "weights", "config.json": "{}"}
    sources = {"model": "models/small-from-large/s0"}
    results.add("keep", "models/small-from-large@1/s0", files, sources)
    payload = results.root / "models/small-from-large@1/s0/payload"
    (payload / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: model.safetensors is gone"):
        packed(results, tmp_path / "never")
    mark = payload / "model.safetensors.removed"
    mark.write_text(f"{hashlib.sha256(b'weights').hexdigest()}\n")
    packed(results, tmp_path / "crate", full=True)
    # Snakemake makes anew what is older than its inputs.
    assert {p.stat().st_mtime for p in (tmp_path / "crate").rglob("*") if p.is_file()} == {
        datetime(1980, 1, 1, tzinfo=UTC).timestamp()
    }
    made = Made(tmp_path / "crate" / "results" / "mini", "models/small-from-large@1/s0")
    assert [*check.shown(made)] == []
    assert (made.path / "payload" / mark.name).read_bytes() == mark.read_bytes()
    assert not (made.path / "payload" / "model.safetensors").exists()


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    packed(results, tmp_path / "one.zip")
    for path in results.root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    packed(results, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == sorted(e.filename for e in entries)
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {e.external_attr >> 16 & 0o777 for e in entries} == {0o644, 0o755}


def test_a_tar_file_holds_the_files_of_a_zip_file_and_nobody_s_name(results, tmp_path):
    names, _ = packed(results, tmp_path / "crate.zip")
    for name in ("one.tar.xz", "two.tar.xz"):
        list(exporting.export(results.root, [], tmp_path / name, workflow=ROOT))
        for path in results.root.rglob("*"):
            os.utime(path, (1e9, 1e9))
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    with (
        tarfile.open(tmp_path / "one.tar.xz") as archive,
        zipfile.ZipFile(tmp_path / "crate.zip") as zipped,
    ):
        entries = archive.getmembers()
        assert [e.name for e in entries] == sorted(names)
        for entry in entries:
            assert archive.extractfile(entry).read() == zipped.read(entry.name)
    kinds = {(e.mtime, e.mode, e.uid, e.gid, e.uname, e.gname) for e in entries}
    assert kinds == {(datetime(1980, 1, 1, tzinfo=UTC).timestamp(), 0o644, 0, 0, "", "")}


def test_nobody_and_no_machine_is_named_unless_asked_for(results, tmp_path):
    _, entities = packed(results, tmp_path / "crate")
    text = (tmp_path / "crate" / "ro-crate-metadata.json").read_text()
    assert "somewhere" not in text and str(tmp_path) not in text  # the host of the manifests
    assert not [e for e in entities.values() if e["@type"] == "Person" or "agent" in e]
    who = "Ada Lovelace <https://orcid.org/0000-0002-1825-0097>"
    _, entities = packed(results, tmp_path / "named", agent=who)
    person = entities["https://orcid.org/0000-0002-1825-0097"]
    assert person["name"] == "Ada Lovelace" and person["@type"] == "Person"
    assert all(e["agent"] == {"@id": person["@id"]} for i, e in entities.items() if "#stage" in i)


def test_licences_are_those_that_are_known(results, tmp_path):
    results.add(
        "dataset", "datasets/x", {"test.parquet": "x"}, cfg={"hub": "a/b", "revision": COMMIT}
    )
    _, entities = packed(results, tmp_path / "crate")
    model = entities[f"https://huggingface.co/{HUB}/tree/{COMMIT}"]
    assert model["license"] == {"@id": "https://spdx.org/licenses/MIT"}
    assert model["citation"] == {"@id": "https://arxiv.org/abs/2501.12948"}
    assert model["version"] == COMMIT
    data = entities[f"https://huggingface.co/datasets/a/b/tree/{COMMIT}"]
    assert data["license"] == data["citation"] == "unknown"
    assert entities["./"]["license"] == {"@id": "https://spdx.org/licenses/Apache-2.0"}
    papers = refs(entities["./"]["citation"])
    assert "https://arxiv.org/abs/2604.13016" in papers
    fetch = next(
        e for i, e in entities.items() if "#stage" in i and "models/small/" in str(e["result"])
    )
    assert refs(fetch["object"]) == {model["@id"]}


def test_a_file_of_the_user_is_named_and_not_packed(tmp_path):
    results = Results(tmp_path)
    source = tmp_path / "data" / "dapo-math-17k.parquet"
    source.parent.mkdir()
    source.write_text("rows")
    results.add(
        "prompts", "prompts/dapo", {"prompts.parquet": "x"}, cfg={"source": {"path": source.name}}
    )
    path = results.root / "prompts/dapo/manifest.json"
    manifest = json.loads(path.read_text())
    sha256 = hashlib.sha256(b"rows").hexdigest()
    manifest["inputs"] = {
        "path": {
            "path": str(source),
            "identity": "",
            "outputs": digest({source.name: sha256}),
        }
    }
    path.write_text(json.dumps(manifest))
    names, entities = packed(results, tmp_path / "crate", full=True)
    entity = entities["#files/dapo-math-17k.parquet"]
    assert entity["sha256"] == sha256 and entity["license"] == {
        "@id": "https://spdx.org/licenses/Apache-2.0"
    }
    assert entity["isBasedOn"]["@id"].endswith("BytedTsinghua-SIA/DAPO-Math-17k")
    assert not any("dapo-math" in name for name in names)
    source.write_text("other rows")  # no longer what was read
    _, entities = packed(results, tmp_path / "later")
    assert "sha256" not in entities["#files/dapo-math-17k.parquet"]
    assert (
        entities["#files/dapo-math-17k.parquet"]["identifier"]
        == manifest["inputs"]["path"]["outputs"]
    )


def test_what_stages_spent_stands_with_them(tmp_path):
    results = Results(tmp_path)
    gpu = {"devices": ["H100"], "peak_memory_bytes": 7, "utilisation": 0.5, "energy_joules": 9.0}
    results.add("distill", "models/a/s0", {"config.json": "{}"}, seconds=12.0, gpu=gpu)
    _, entities = packed(results, tmp_path / "crate")
    (action,) = [e for i, e in entities.items() if i.startswith("#stage-")]
    used = {entities[i]["propertyID"]: entities[i] for i in refs(action["resourceUsage"])}
    assert {key: one["value"] for key, one in used.items()} == {
        "opd:seconds": "12.0",
        "opd:peak_memory_bytes": "7",
        "opd:utilisation": "50.0",
        "opd:energy_joules": "9.0",
    }


@pytest.mark.parametrize("kind", ["payload", "copy", "stale", "weights"])
def test_nothing_is_packed_that_is_not_as_it_was_made(results, tmp_path, kind):
    full = False
    if kind == "payload":
        (results.root / "figures/fig05/payload/figure.svg").write_text("drawn by hand")
    elif kind == "copy":
        (results.root / "tables/headline.csv").write_text("a,c\n")
    elif kind == "weights":
        (results.root / "models/other/s0/payload/model.safetensors").write_text("OTHER")
        full = True
    else:
        results.add("distill", "models/small-from-large/s0", {"metrics.parquet": "new"})
    with pytest.raises(UserError):
        packed(results, tmp_path / "crate.zip", full=full)
    assert not list(tmp_path.glob("*crate*"))
    if kind == "payload":
        packed(results, tmp_path / "part.zip", "headline")  # what is complete can be had


LINKS = ("logs/models/small.log", "config.yaml", "plan.json", "tables/headline.csv")


@pytest.mark.parametrize("name", [*LINKS, "workflow"])
def test_what_a_link_leads_to_is_not_packed(results, tmp_path, name):
    """Of a log or a record of the results, of a copy, and of a file of the workflow."""
    secret = tmp_path / "secret"
    secret.write_text("a,b\n")
    workflow = tmp_path / "clone"
    list(exporting.export(results.root, [], workflow, workflow=ROOT))
    path = workflow / "config" / "x.yaml" if name == "workflow" else results.root / name
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(UserError, match=f"{path}: it is a link, or no file, and nothing elsewhere"):
        list(exporting.export(results.root, [], tmp_path / "crate", workflow=workflow))
    assert not (tmp_path / "crate").exists()


def test_no_payload_that_leads_out_of_a_received_folder_is_read(results, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    payload = results.root / "models/other/s0/payload"
    payload.rename(elsewhere)
    payload.symlink_to(elsewhere)
    read: list[Path] = []
    monkeypatch.setattr(check, "plain_digest", lambda path: read.append(path) or "")
    with pytest.raises(UserError, match=r"models/other/s0: missing: config\.json is gone"):
        list(exporting.export(results.root, ["models/other/s0"], tmp_path / "x", workflow=ROOT))
    assert read == []


def test_what_a_version_with_another_stage_made_is_refused(results, tmp_path):
    results.add("opd", "models/older/s0", {"metrics.parquet": "x"})
    with pytest.raises(UserError, match="a version with a stage 'opd' made it"):
        packed(results, tmp_path / "x.zip")


def test_what_git_ignores_of_the_workflow_is_not_packed(results, tmp_path):
    """The settings of a site name its account and its paths."""
    clone = tmp_path / "clone"
    list(exporting.export(results.root, [], clone, workflow=ROOT))
    (clone / ".gitignore").write_text("/slurm/site.yaml\n/config/private.yaml\n")
    for name in ("slurm/site.yaml", "config/private.yaml", "config/mine.yaml"):
        (clone / name).write_text("account: someone\n")
    mine = {"slurm/site.example.yaml", "config/mine.yaml"}
    unpacked = {file.path for file in exporting.sources(clone)}
    assert {*mine, "config/private.yaml"} < unpacked and "slurm/site.yaml" not in unpacked
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    assert unpacked - {file.path for file in exporting.sources(clone)} == {"config/private.yaml"}
    (clone / ".gitignore").write_text("*\n")  # as where a crate is unpacked below results/
    assert {file.path for file in exporting.sources(clone)} == unpacked


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_no_folder_is_called_like_an_archive(results, tmp_path, name):
    with pytest.raises(
        UserError, match=r"no such archive is written; give a name that ends in \.zip or \.tar\.xz"
    ):
        packed(results, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_refusals(results, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there already"):
        packed(results, tmp_path / "there")
    with pytest.raises(UserError, match="no finished artifact"):
        list(exporting.export(tmp_path / "there", [], tmp_path / "x.zip", workflow=ROOT))
    with pytest.raises(UserError, match="no Snakefile"):
        list(exporting.export(results.root, [], tmp_path / "x.zip", workflow=tmp_path))
    with pytest.raises(UserError, match="did you mean"):
        packed(results, tmp_path / "x.zip", "fig06")

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.shutil, "copyfileobj", full_disk)
    monkeypatch.setattr(exporting.shutil, "copyfile", full_disk)
    monkeypatch.setattr(tarfile, "copyfileobj", full_disk)
    for out in ("x.zip", "x.tar.xz", "x"):
        with pytest.raises(OSError, match="No space"):
            packed(results, tmp_path / out)
    assert not list(tmp_path.glob("*x*"))


def test_every_hub_object_and_file_of_the_shipped_configs_has_a_line_on_its_licence():
    known = yaml.safe_load((ROOT / "config" / "sources.yaml").read_text())
    for name in ("pilot", "paper"):
        merged = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
        objects = {
            hub_lock.key(one) for one in hub_lock.hub_objects(resolve.resolve(merged)).values()
        }
        assert objects <= known.keys(), objects - known.keys()
    paths = set()
    for name in ("pilot", "paper-files"):
        prompts = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())["prompts"]
        paths |= {f"files/{one['path']['file']}" for one in prompts.values() if one.get("path")}
    assert paths <= known.keys(), paths - known.keys()
    assert all({"licence", "citation"} <= one.keys() for one in known.values())
