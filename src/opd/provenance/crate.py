"""What an exported results folder says of itself: a Provenance Run Crate (RO-Crate 1.1).

The workflow (Snakefile) has a tool for each stage of ``opd`` and a step for each rule. Each
computation is a CreateAction that names what it read (``object``) and wrote (``result``); one more
stands for the whole run. Profiles: https://w3id.org/ro/wfrun/provenance/0.5 and what it extends.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from mimetypes import MimeTypes
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

import opd
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import digest, file_digest
from opd.stages import registry
from opd.stages.on_disk import Input
from opd.stages.records import Manifest

TEXTS = yaml.safe_load(package_file(__file__, "crate.yaml").read_text(encoding="utf-8"))
UNKNOWN = "unknown"


class File(NamedTuple):
    """A file of the crate: its place there, its source, and why it is only named, if it is."""

    path: str
    source: Path
    sha256: str
    left_out: str = ""

    @property
    def size(self) -> int:
        return self.source.stat().st_size


class Packed(NamedTuple):
    """An artifact of the crate with its files (records, payload, copies), and its log."""

    folder: str
    manifest: Manifest
    inputs: list[Input]
    files: list[File]
    logs: list[File]


def metadata(
    root: Path,
    artifacts: Sequence[Packed],
    code: Sequence[File],
    beside: Sequence[File],
    agent: str | None,
    workflow: Path,
    complete: bool,
) -> str:
    """The JSON-LD text of a crate: of the artifacts of results/NAME (``root``), the workflow's
    files (``code``) and what lies beside the artifacts (``beside``: config and plan)."""
    try:
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        remedy = "pip install 'opd[export]'"
        raise UserError("the package rocrate is missing", "opd export", remedy) from error
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TEXTS["terms"])
    known = yaml.safe_load((workflow / "config" / "sources.yaml").read_text(encoding="utf-8"))
    cff = yaml.safe_load((workflow / "CITATION.cff").read_text(encoding="utf-8"))
    person = _person(crate, agent)
    tools, steps = _workflow(crate, code, cff, sorted({x.manifest.stage for x in artifacts}))
    folders = {x.folder: _dataset(crate, root, x) for x in artifacts}
    # Several folders may link what one computation has made.
    computations: dict[str, list[Packed]] = defaultdict(list)
    for artifact in artifacts:
        computations[artifact.manifest.identity].append(artifact)

    actions, controls = [], []
    read_of_others: dict[str, Any] = {}
    for made in computations.values():
        stage = made[0].manifest.stage
        others = {entity.id: entity for x in made for entity in _others(crate, known, x)}
        used = [folders[source.folder] for x in made for source in x.inputs if source.used.made]
        action = _add(
            crate,
            f"#stage-{made[0].manifest.identity[:16]}",
            "CreateAction",
            **_computation(crate, made),
            instrument=tools[stage],
            object=[*dict.fromkeys([*used, *others.values()])],
            result=[folders[x.folder] for x in made],
            agent=person,
        )
        about = {"name": f"orchestration of {action['name']}", "instrument": steps[stage]}
        place = action.id.replace("#stage-", "#step-")
        controls.append(_add(crate, place, "ControlAction", **about, object=action))
        for file in (file for x in made for file in x.logs):
            _add_file(crate, file, about=action)
        actions.append(action)
        read_of_others |= others

    config = _beside(crate, beside)
    sources = {source.folder for x in artifacts for source in x.inputs}
    run = _add(
        crate,
        "#run",
        "CreateAction",
        **_span([x.manifest for x in artifacts]),
        name=f"run of the workflow into results/{root.name}",
        description=f"{len(actions)} stages, the first and the last as their manifests say; "
        "not all of them need to have run in one go",
        instrument=crate.mainEntity,
        object=[*config, *(read_of_others[key] for key in sorted(read_of_others))],
        # What the run was for: the artifacts that no other one was made from.
        result=[folders[folder] for folder in folders if folder not in sources],
        agent=person,
    )
    engine = _add(crate, "#snakemake", "SoftwareApplication", **TEXTS["engine"])
    about = {"name": "Snakemake's run", "instrument": engine, "object": controls, "result": run}
    orchestration = _add(crate, "#orchestration", "OrganizeAction", **about)
    _root(crate, cff, f"{root.name}{'' if complete else ', a part of it'}", len(artifacts))
    crate.root_dataset["datePublished"] = run["endTime"]
    crate.root_dataset["mentions"] = [run, orchestration, *actions]
    crate.root_dataset["author"] = person
    described = crate.metadata.generate()
    # JSON-LD is flattened in a crate: a list of one is that one, and what is empty is left out.
    described["@graph"] = [
        {
            key: value[0] if isinstance(value, list) and len(value) == 1 else value
            for key, value in entity.items()
            if value not in (None, [])
        }
        for entity in described["@graph"]
    ]
    return json.dumps(described, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _add(crate: Any, identifier: str, kind: str, /, **values: Any) -> Any:
    """Add what is no file or folder. Values may be other entities."""
    from rocrate.model import ContextEntity

    return crate.add(ContextEntity(crate, identifier, properties={"@type": kind, **values}))


def _add_file(crate: Any, file: File, **values: Any) -> Any:
    about = {"contentSize": str(file.size), "sha256": file.sha256, **values}
    if file.left_out:
        about |= {"name": file.path, "description": f"not in this crate: {file.left_out}"}
        return _add(crate, f"#{quote(file.path, safe='/@')}", "CreativeWork", **about)
    suffix = Path(file.path).suffix
    known = TEXTS["formats"].get(suffix) or MimeTypes().guess_type(f"x{suffix}")[0]
    about |= {"name": Path(file.path).name, "encodingFormat": known or "text/plain"}
    return crate.add_file(dest_path=file.path, properties=about)


def _person(crate: Any, agent: str | None) -> Any:
    """Who ran it all: ``NAME <URL>``, or a name alone; None where nobody is named."""
    if agent is None:
        return None
    name, _, address = agent.partition("<")
    identifier = address.strip(" >") or f"#{quote(name.strip())}"
    return _add(crate, identifier, "Person", name=name.strip())


def _root(crate: Any, cff: Mapping[str, Any], part: str, artifacts: int) -> None:
    """What a crate of these profiles says of itself: name, licence, profiles and papers."""
    root = crate.root_dataset
    root["name"] = f"results of {cff['title'].partition(':')[0]}, {part}"
    made = f"{artifacts} artifacts of {cff['title']}, with what made each."
    root["description"] = f"{made} {TEXTS['licences']}"
    root["license"] = _licence(crate, cff["license"])
    root["conformsTo"] = [
        _add(crate, profile, "CreativeWork", **about)
        for profile, about in TEXTS["profiles"].items()
    ]
    root["citation"] = [
        _work(crate, x["identifiers"][0]["value"], name=x["title"], datePublished=str(x["year"]))
        for x in cff["references"]
    ]


def _workflow(
    crate: Any, code: Sequence[File], cff: Mapping[str, Any], stages: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the main entity with its files; its tools and steps by stage."""
    files = {file.path: file for file in code}
    about = {"name": cff["title"], "version": str(cff["version"]), "license": cff["license"]}
    about |= {**TEXTS["workflow"], "sha256": files.pop("Snakefile").sha256}
    main = crate.add_workflow(dest_path="Snakefile", main=True, lang="snakemake", properties=about)
    for file in files.values():
        _add_file(crate, file)
    crate.add_file(dest_path="README.md", properties=TEXTS["readme"])
    tools, steps = {}, {}
    for position, stage in enumerate(stages, 1):
        path, description = _function(stage)
        tools[stage] = _add(
            crate,
            f"#opd-{stage}",
            "SoftwareApplication",
            name=f"opd stage {stage}",
            description=description,
            softwareVersion=about["version"],
            isBasedOn={"@id": f"src/{path}"},
        )
        values = {"position": str(position), "name": f"rule {stage}", "workExample": tools[stage]}
        steps[stage] = _add(crate, f"Snakefile#{stage}", "HowToStep", **values)
    main["hasPart"], main["step"] = [*tools.values()], [*steps.values()]
    return tools, steps


def _function(stage: str) -> tuple[str, str]:
    """The file of a stage's function, and the first paragraph of its docstring."""
    module, _, function = registry.STAGES[stage].run.partition(":")
    path = f"{module.replace('.', '/')}.py"
    tree = ast.parse((Path(opd.__file__).parents[1] / path).read_text(encoding="utf-8"))
    (defined,) = (x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == function)
    text = ast.get_docstring(defined) or ""
    return path, " ".join(text.partition("\n\n")[0].split())


def _beside(crate: Any, beside: Sequence[File]) -> list[Any]:
    """Add config and plan. The config, where there is one, is returned: the run was given it."""
    entities = [_add_file(crate, file) for file in beside]
    config = [entity for entity in entities if entity.id.endswith("/config.yaml")]
    for entity in config:
        about = {**TEXTS["parameter"], "workExample": entity}
        parameter = _add(crate, "#config", "FormalParameter", **about)
        entity["exampleOfWork"] = crate.mainEntity["input"] = parameter
    return config


def _dataset(crate: Any, root: Path, artifact: Packed) -> Any:
    properties = {
        "name": artifact.folder,
        "description": f"what `opd stage {artifact.manifest.stage}` has made",
        "identifier": artifact.manifest.identity,
        "hasPart": [_add_file(crate, file) for file in artifact.files],
    }
    folder = f"results/{root.name}/{artifact.folder}/"
    return crate.add_dataset(dest_path=folder, properties=properties)


def _computation(crate: Any, made: Sequence[Packed]) -> dict[str, Any]:
    """What is said of the computation of an artifact: neither who nor which machine ran it."""
    manifest = made[0].manifest
    text = f"`opd stage {manifest.stage}` with the settings in its manifest.json (cfg)"
    if manifest.cfg.get("code") != registry.code_digest(manifest.stage):
        text += ". Its code was another one than what lies in this crate"
    spent: dict[str, Any] = {"seconds": manifest.seconds, **(manifest.gpu or {})}
    if "utilisation" in spent:
        spent["utilisation"] *= 100
    usage = []
    for name, about in TEXTS["usage"].items():
        if name in spent:
            place = f"#{name.replace('_', '-')}-{manifest.identity[:16]}"
            value = {"propertyID": f"opd:{name}", "value": str(round(spent[name], 2)), **about}
            usage.append(_add(crate, place, "PropertyValue", **value))
    return {
        **_span([manifest]),
        "name": f"{manifest.stage}: {', '.join(x.folder for x in made)}",
        "description": text,
        "actionStatus": "http://schema.org/CompletedActionStatus",
        "resourceUsage": usage,
    }


def _span(manifests: Sequence[Manifest]) -> dict[str, str]:
    """When the first of these stages started, and the last one ended."""
    spans = [(datetime.fromisoformat(x.started), timedelta(seconds=x.seconds)) for x in manifests]
    ended = max(start + time for start, time in spans).replace(microsecond=0)
    return {"startTime": min(spans)[0].isoformat(), "endTime": ended.isoformat()}


def _others(crate: Any, known: Mapping[str, Any], artifact: Packed) -> Iterator[Any]:
    """Others' models and data that a stage has read or fetched, and what ``known`` says of them."""
    manifest = artifact.manifest
    cfg, stage = manifest.cfg, manifest.stage
    for source in artifact.inputs:
        if not source.used.made:
            yield _plain_file(crate, known, cfg, source)
    fetched = registry.source(stage, cfg)
    if fetched.get("hub"):
        key = f"{'models' if stage == 'fetch' else 'datasets'}/{fetched['hub']}"
        revision = fetched.get("revision")
        where = f"{_hub(key)}/tree/{revision}" if revision else _hub(key)
        yield _other(crate, known, key, where, version=revision or None)
    elif stage == "fetch" and manifest.numbers.get("packages"):
        package, _, version = manifest.numbers["packages"][0].partition("==")
        where = f"https://pypi.org/project/{package}/{version}/"
        yield _other(crate, known, f"packages/{fetched['path']}", where, version=version or None)


def _plain_file(crate: Any, known: Mapping[str, Any], cfg: Mapping[str, Any], source: Input) -> Any:
    """A file (or folder) of the user that a stage has read. It may be others' work: not packed."""
    path, contents = Path(source.used.path), source.used.outputs
    named = cfg.get("path") if source.name == "files" else cfg.get("source", {}).get("path")
    key = f"files/{named if named and source.name in ('files', 'path') else path.name}"
    about = {"identifier": contents}
    if path.is_file() and digest({path.name: (sha256 := file_digest(path))}) == contents:
        about = {"sha256": sha256, "contentSize": str(path.stat().st_size)}
    return _other(crate, known, key, f"#{quote(key, safe='/')}", **about)


def _other(crate: Any, known: Mapping[str, Any], key: str, where: str, /, **values: Any) -> Any:
    about = known.get(key, {})
    licence, citation = about.get("licence", UNKNOWN), about.get("citation", UNKNOWN)
    values |= {
        "name": key.partition("/")[2],
        "license": UNKNOWN if licence == UNKNOWN else _licence(crate, licence),
        "citation": UNKNOWN if citation == UNKNOWN else _work(crate, citation, name=citation),
        "isBasedOn": {"@id": _hub(about["same_as"])} if "same_as" in about else None,
    }
    return _add(crate, where, "CreativeWork", **values)


def _hub(key: str) -> str:
    """The page of models/ID or datasets/ID."""
    return f"https://huggingface.co/{key.removeprefix('models/')}"


def _licence(crate: Any, spdx: str) -> Any:
    return _add(crate, f"https://spdx.org/licenses/{spdx}", "CreativeWork", name=spdx)


def _work(crate: Any, citation: str, **values: str) -> Any:
    """A paper by its arXiv number, or other works as they are cited."""
    arxiv = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", citation)
    if arxiv:
        return _add(crate, f"https://arxiv.org/abs/{arxiv[1]}", "ScholarlyArticle", **values)
    address = re.search(r"https://\S+", citation)
    where = address[0] if address else f"#{quote(citation)}"
    return _add(crate, where, "CreativeWork", **values)
