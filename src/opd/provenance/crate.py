"""What an exported results folder says of itself: a Provenance Run Crate (RO-Crate 1.1).

The workflow (Snakefile) has one tool for each verb of ``opd`` and one step for each rule. Each
artifact was made by one CreateAction: ``object`` are the artifacts, files and hub objects that it
read, ``result`` the folder that it wrote. One more CreateAction stands for the run as a whole.
Profiles: https://w3id.org/ro/wfrun/provenance/0.5 and what it extends.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

import opd
from opd.core.errors import UserError
from opd.core.files import digest, file_digest
from opd.models.fetch import INDEX
from opd.stages.code import code_digest
from opd.stages.registry import VERBS

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
RUN = "https://w3id.org/ro/terms/workflow-run#"
TERMS = {"sha256": f"{RUN}sha256", "resourceUsage": f"{RUN}resourceUsage"}
# UN/CEFACT codes: second, byte, percent, joule.
USED = {
    "seconds": ("wall-clock time", "SEC"),
    "peak_memory_bytes": ("highest memory in use on one GPU", "AD"),
    "utilisation": ("share of time with work on the GPUs", "P1"),
    "energy_joules": ("energy of the GPUs", "JOU"),
}
FORMATS = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".html": "text/html",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".py": "text/x-python",
    **dict.fromkeys((".npy", ".npz", ".safetensors"), "application/octet-stream"),
}
UNKNOWN = "unknown"
ENGINE = {
    "@id": "#snakemake",
    "@type": "SoftwareApplication",
    "name": "Snakemake",
    "url": "https://snakemake.github.io",
}

Entity = dict[str, Any]


class File(NamedTuple):
    """A file of the crate: where it lies in it, and where it is from."""

    path: str
    source: Path
    sha256: str


class LeftOut(NamedTuple):
    """A file of an artifact that the crate only names."""

    path: str
    sha256: str
    size: int
    why: str


class Stage(NamedTuple):
    """An artifact with its files (manifest and digest first), and what else belongs to it: copies
    of what it shows, its log, its benchmark."""

    folder: str
    manifest: Mapping[str, Any]
    files: list[File]
    left_out: list[LeftOut]
    copies: list[File]
    records: list[File]


def metadata(
    root: Path,
    stages: Sequence[Stage],
    code: Sequence[File],
    extra: Sequence[File],
    agent: str | None,
    workflow: Path,
    complete: bool,
) -> str:
    """The JSON-LD text of a crate: of the artifacts of results/NAME (``root``), the workflow's
    files (``code``) and what lies beside the artifacts (``extra``: config and plan)."""
    try:
        from rocrate.model import ContextEntity, Dataset
        from rocrate.model import File as DataFile
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise UserError(
            "the package rocrate is missing", "opd export", "pip install 'opd[export]'"
        ) from error
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TERMS)

    def add(entity: Entity) -> Any:
        given = {key: _plain(value) for key, value in entity.items() if key != "@id"}
        return crate.add(ContextEntity(crate, entity["@id"], properties=given))

    def add_file(file: File, **more: Any) -> Any:
        given = {
            "name": Path(file.path).name,
            "contentSize": str(file.source.stat().st_size),
            "sha256": file.sha256,
            "encodingFormat": FORMATS.get(Path(file.path).suffix, "text/plain"),
            **more,
        }
        return crate.add(DataFile(crate, dest_path=file.path, properties=given))

    known = yaml.safe_load((workflow / "config" / "sources.yaml").read_text())
    cff = yaml.safe_load((workflow / "CITATION.cff").read_text())
    found = Sources(known)
    actions = by_identity(stages)

    main = crate.add_workflow(
        dest_path="Snakefile", main=True, lang="snakemake", properties=_workflow(cff)
    )
    for file in code:
        if file.path == "Snakefile":
            main["sha256"] = file.sha256
        else:
            add_file(file)
    crate.add(DataFile(crate, dest_path="README.md", properties=_readme_entity()))

    # Tools and steps
    verbs = sorted({stage.manifest["verb"] for stage in stages})
    add(ENGINE)
    for position, verb in enumerate(verbs, 1):
        add(_tool(verb, cff))
        step = {"@type": "HowToStep", "position": str(position), "name": f"rule {verb}"}
        add({"@id": f"Snakefile#{verb}", **step, "workExample": {"@id": f"#opd-{verb}"}})
    main["hasPart"] = _plain([{"@id": f"#opd-{verb}"} for verb in verbs])
    main["step"] = _plain([{"@id": f"Snakefile#{verb}"} for verb in verbs])

    # Artifacts
    person = _person(agent)
    if person:
        add(person)
    for stage in stages:
        folder = f"results/{root.name}/{stage.folder}/"
        parts = [add_file(file) for file in (*stage.files, *stage.copies)]
        parts += [add(_left_out(one)) for one in stage.left_out]
        crate.add(
            Dataset(
                crate,
                dest_path=folder,
                properties={
                    "name": stage.folder,
                    "description": f"what `opd {stage.manifest['verb']}` has made",
                    "identifier": stage.manifest["identity"],
                    "hasPart": _plain([{"@id": part.id} for part in parts]),
                },
            )
        )
    places = {stage.folder: f"results/{root.name}/{stage.folder}/" for stage in stages}
    for identity, made in actions.items():
        action = _action(identity, made, places, root, found, person)
        for use in _used(identity, made[0].manifest):
            add(use)
            action.setdefault("resourceUsage", []).append({"@id": use["@id"]})
        add(action)
        verb = made[0].manifest["verb"]
        add(
            {
                "@id": f"#step-{identity[:16]}",
                "@type": "ControlAction",
                "name": f"orchestration of {action['name']}",
                "instrument": {"@id": f"Snakefile#{verb}"},
                "object": {"@id": action["@id"]},
            }
        )
        for record in (record for stage in made for record in stage.records):
            add_file(record, about={"@id": action["@id"]})
    for entity in found.entities():
        add(entity)

    # The run as a whole
    beside = [add_file(file) for file in extra]
    config = [file for file in beside if file.id.endswith("/config.yaml")]
    if config:
        add(_config_parameter(config[0].id))
        config[0]["exampleOfWork"] = {"@id": "#config"}
        main["input"] = {"@id": "#config"}
    ids = [f"#stage-{identity[:16]}" for identity in actions]
    times = [time for made in actions.values() for time in _times(made[0].manifest)]
    last = _last(stages)
    run = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"run of the workflow into results/{root.name}",
        "description": f"{len(actions)} stages, the first and the last as their manifests say; "
        "not all of them need to have run in one go",
        "instrument": {"@id": "Snakefile"},
        "object": [{"@id": one.id} for one in config] + [{"@id": i} for i in found.ids()],
        "result": [{"@id": quote(places[one.folder], safe="/@")} for one in last],
        "startTime": min(times).isoformat(),
        "endTime": max(times).isoformat(),
        **({"agent": {"@id": person["@id"]}} if person else {}),
    }
    add({key: value for key, value in run.items() if value != []})
    add(
        {
            "@id": "#orchestration",
            "@type": "OrganizeAction",
            "name": "Snakemake's run",
            "instrument": {"@id": "#snakemake"},
            "object": [{"@id": f"#step-{identity[:16]}"} for identity in actions],
            "result": {"@id": "#run"},
        }
    )

    for entity in _references(cff):
        add(entity)
    for profile, (name, version) in PROFILES.items():
        if crate.get(profile) is None:
            add({"@id": profile, "@type": "CreativeWork", "name": name, "version": version})
    part = "" if complete else ", a part of it"
    root_entity = crate.root_dataset
    root_entity["name"] = f"results of {cff['title'].partition(':')[0]}, {root.name}{part}"
    root_entity["description"] = (
        f"{len(stages)} artifacts of {cff['title']}, with what made each. {LICENCES}"
    )
    add(_licence(cff["license"]))
    root_entity["license"] = {"@id": _licence(cff["license"])["@id"]}
    root_entity["datePublished"] = max(times).isoformat()
    root_entity["conformsTo"] = [{"@id": profile} for profile in PROFILES]
    root_entity["mentions"] = [{"@id": i} for i in ["#run", "#orchestration", *ids]]
    root_entity["citation"] = [{"@id": one["@id"]} for one in _references(cff)]
    if person:
        root_entity["author"] = {"@id": person["@id"]}
    text = json.dumps(crate.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False)
    return text + "\n"


def _plain(value: Any) -> Any:
    """A list of one as that one, as JSON-LD is flattened in a crate."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


LICENCES = (
    "The licence is that of the workflow and of what it made here; models and data of others have "
    "their own, named with each, or unknown where none is known."
)


def _workflow(cff: Mapping[str, Any]) -> Entity:
    return {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        "name": cff["title"],
        "description": "on-policy distillation, from prompts to tables and verdicts on claims",
        "version": str(cff["version"]),
        "license": cff["license"],
        "encodingFormat": "text/plain",
        "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
    }


def _readme_entity() -> Entity:
    return {"name": "README.md", "about": {"@id": "./"}, "encodingFormat": "text/markdown"}


def _config_parameter(file: str) -> Entity:
    return {
        "@id": "#config",
        "@type": "FormalParameter",
        "additionalType": "File",
        "name": "configfile",
        "description": "all settings of the run",
        "conformsTo": {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
        "workExample": {"@id": file},
    }


def _tool(verb: str, cff: Mapping[str, Any]) -> Entity:
    """A verb of ``opd``, in the words of its function."""
    module, _, function = VERBS[verb].partition(":")
    path = Path(*module.split(".")).with_suffix(".py")
    tree = ast.parse((Path(opd.__file__).parents[1] / path).read_text())
    text = next(
        ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return {
        "@id": f"#opd-{verb}",
        "@type": "SoftwareApplication",
        "name": f"opd {verb}",
        "description": " ".join(text.partition("\n\n")[0].split()),
        "softwareVersion": str(cff["version"]),
        "isBasedOn": {"@id": f"src/{path.as_posix()}"},
    }


# Actions


def by_identity(stages: Iterable[Stage]) -> dict[str, list[Stage]]:
    """Artifacts that one computation has made: several folders may link the same."""
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.manifest["identity"], []).append(stage)
    return found


def _action(
    identity: str,
    made: Sequence[Stage],
    places: Mapping[str, str],
    root: Path,
    found: "Sources",
    person: Entity | None,
) -> Entity:
    """The computation of an artifact. Who or which machine ran it is not said but by ``person``."""
    manifest = made[0].manifest
    start, end = _times(manifest)
    used: dict[str, None] = {}
    for stage in made:
        for name, given in stage.manifest["inputs"].items():
            source = Path(given["path"])
            if source.name == "digest.json":
                folder = source.parent.as_posix().partition(f"results/{root.name}/")[2]
                used[quote(places[folder], safe="/@")] = None
            else:
                used[found.file(stage.manifest, name, given)] = None
        for source_id in found.fetched(stage.manifest):
            used[source_id] = None
    verb = manifest["verb"]
    text = f"`opd {verb}` with the settings in its manifest.json (cfg)"
    if manifest["cfg"].get("code") != code_digest(verb):
        text += ". Its code was another one than what lies in this crate"
    entity = {
        "@id": f"#stage-{identity[:16]}",
        "@type": "CreateAction",
        "name": f"{verb}: {', '.join(stage.folder for stage in made)}",
        "description": text,
        "instrument": {"@id": f"#opd-{verb}"},
        "object": [{"@id": one} for one in used],
        "result": [{"@id": quote(places[stage.folder], safe="/@")} for stage in made],
        "startTime": start.isoformat(),
        "endTime": end.isoformat(),
        "actionStatus": "http://schema.org/CompletedActionStatus",
        **({"agent": {"@id": person["@id"]}} if person else {}),
    }
    return {key: value for key, value in entity.items() if value != []}


def _times(manifest: Mapping[str, Any]) -> tuple[datetime, datetime]:
    start = datetime.fromisoformat(manifest["started"])
    return start, (start + timedelta(seconds=manifest["seconds"])).replace(microsecond=0)


def _used(identity: str, manifest: Mapping[str, Any]) -> list[Entity]:
    """Time, and what GPUs spent."""
    values = {"seconds": manifest["seconds"], **manifest.get("gpu", {})}
    if "utilisation" in values:
        values["utilisation"] = 100 * values["utilisation"]
    return [
        {
            "@id": f"#{name.replace('_', '-')}-{identity[:16]}",
            "@type": "PropertyValue",
            "propertyID": f"opd:{name}",
            "name": words,
            "value": str(round(values[name], 2)),
            "unitCode": unit,
        }
        for name, (words, unit) in USED.items()
        if name in values
    ]


def _last(stages: Sequence[Stage]) -> list[Stage]:
    """Artifacts that no other one was made from: what the run was for."""
    read = {given["path"] for stage in stages for given in stage.manifest["inputs"].values()}
    return [
        stage
        for stage in stages
        if not any(path.endswith(f"/{stage.folder}/digest.json") for path in read)
    ]


def _left_out(one: LeftOut) -> Entity:
    return {
        "@id": f"#{quote(one.path, safe='/@')}",
        "@type": "CreativeWork",
        "name": one.path,
        "description": f"not in this crate: {one.why}",
        "contentSize": str(one.size),
        "sha256": one.sha256,
    }


# What others made


class Sources:
    """Models and data of others that actions have read, with what ``config/sources.yaml`` knows."""

    def __init__(self, known: Mapping[str, Mapping[str, str]]) -> None:
        self.known = known
        self.found: dict[str, Entity] = {}

    def fetched(self, manifest: Mapping[str, Any]) -> list[str]:
        """Ids of the hub objects and packages that a stage has fetched."""
        cfg, verb = manifest["cfg"], manifest["verb"]
        source = cfg.get("source", {}) if verb == "prompts" else cfg
        if verb not in ("fetch", "dataset", "prompts"):
            return []
        if source.get("hub"):
            kind = "models" if verb == "fetch" else "datasets"
            revision = source.get("revision", "")
            return [
                self._add(f"{kind}/{source['hub']}", _hub(kind, source["hub"], revision), revision)
            ]
        if source.get("index"):
            package = INDEX[source["index"]]["packages"][0]
            name, _, version = package.partition("==")
            url = f"https://pypi.org/project/{name}/{version}/"
            return [self._add(f"index/{source['index']}", url, version)]
        return []

    def file(self, manifest: Mapping[str, Any], name: str, given: Mapping[str, str]) -> str:
        """Id of a plain file (or folder) that a stage has read. Files are not packed: they are the
        user's, and may be others' work."""
        cfg = manifest["cfg"]
        path = Path(given["path"])
        named = cfg.get("path") if name == "files" else cfg.get("source", {}).get("path")
        key = f"files/{named if named and name in ('files', 'path') else path.name}"
        more: Entity = {"identifier": given["outputs"]}
        if path.is_file():
            sha256 = file_digest(path)
            if digest({path.name: sha256}) == given["outputs"]:
                more = {"sha256": sha256, "contentSize": str(path.stat().st_size)}
        return self._add(key, f"#{quote(key, safe='/')}", "", **more)

    def _add(self, key: str, where: str, version: str, **more: Any) -> str:
        known = self.known.get(key, {})
        licence = known.get("licence", UNKNOWN)
        citation = known.get("citation", UNKNOWN)
        entity: Entity = {
            "@id": where,
            "@type": "CreativeWork",
            "name": key.partition("/")[2],
            "license": UNKNOWN if licence == UNKNOWN else {"@id": _licence(licence)["@id"]},
            "citation": UNKNOWN if citation == UNKNOWN else {"@id": _work(citation)["@id"]},
            **({"version": version} if version else {}),
            **more,
        }
        if "same_as" in known:
            kind, _, name = known["same_as"].partition("/")
            entity["isBasedOn"] = {"@id": _hub(kind, name, "")}
        self.found[where] = entity
        if licence != UNKNOWN:
            self.found.setdefault(_licence(licence)["@id"], _licence(licence))
        if citation != UNKNOWN:
            self.found.setdefault(_work(citation)["@id"], _work(citation))
        return where

    def entities(self) -> list[Entity]:
        return [self.found[key] for key in sorted(self.found)]

    def ids(self) -> list[str]:
        """Of what was read: not of licences and papers."""
        return sorted(key for key, entity in self.found.items() if "citation" in entity)


def _hub(kind: str, name: str, revision: str) -> str:
    prefix = "datasets/" if kind == "datasets" else ""
    return f"https://huggingface.co/{prefix}{name}" + (f"/tree/{revision}" if revision else "")


def _licence(spdx: str) -> Entity:
    return {"@id": f"https://spdx.org/licenses/{spdx}", "@type": "CreativeWork", "name": spdx}


def _work(citation: str) -> Entity:
    """A paper by its arXiv number, or other works as they are cited."""
    arxiv = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", citation)
    if arxiv:
        paper = f"https://arxiv.org/abs/{arxiv[1]}"
        return {"@id": paper, "@type": "ScholarlyArticle", "name": citation}
    address = re.search(r"https://\S+", citation)
    where = address[0] if address else f"#{quote(citation)}"
    return {"@id": where, "@type": "CreativeWork", "name": citation}


def _references(cff: Mapping[str, Any]) -> list[Entity]:
    """The papers of CITATION.cff."""
    found = []
    for one in cff["references"]:
        work = _work(one["identifiers"][0]["value"])
        found.append({**work, "name": one["title"], "datePublished": str(one["year"])})
    return found


def _person(agent: str | None) -> Entity | None:
    """``NAME <URL>``, or a name alone."""
    if agent is None:
        return None
    name, _, address = agent.partition("<")
    identifier = address.strip(" >") or f"#{quote(name.strip())}"
    return {"@id": identifier, "@type": "Person", "name": name.strip()}


def readme(name: str, targets: Sequence[str], left_out: Sequence[LeftOut]) -> str:
    """README.md of a crate: what to look at first, how to check it, and what is not in it."""
    of = f"`results/{name}`" if not targets else f"what is behind {', '.join(targets)}"
    text = f"""\
# Results of opd: {name}

This is {of}, as one [RO-Crate](https://w3id.org/ro/crate) with the workflow that made it.
`ro-crate-metadata.json` says for machines what was made from what, by what and when, and under
which licences. Each artifact's folder holds `manifest.json` (what made it), `digest.json` (digests
of what it is) and `payload/`.

{LICENCES}

To compare every file with what was made: install the package (`pip install .` here) and run
`opd audit results/{name}`.
"""
    if left_out:
        text += "\n## Not in this crate\n\n| file | bytes | sha256 | why |\n"
        text += "| --- | ---: | --- | --- |\n"
        rows = (f"| {one.path} | {one.size} | {one.sha256} | {one.why} |\n" for one in left_out)
        text += "".join(rows)
    return text
