"""What an exported results folder says of itself: a Provenance Run Crate (RO-Crate 1.1).

The workflow (Snakefile) has one tool for each stage of ``opd`` and one step for each rule. Each
artifact was made by one CreateAction: ``object`` are the artifacts, files and hub objects that it
read, ``result`` the folder that it wrote. One more CreateAction stands for the run as a whole.
Profiles: https://w3id.org/ro/wfrun/provenance/0.5 and what it extends.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from mimetypes import MimeTypes
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

import opd
from opd.core.errors import UserError
from opd.core.files import digest, file_digest
from opd.stages import registry
from opd.stages.code import code_digest
from opd.stages.on_disk import Input
from opd.stages.records import Manifest

TEXTS = yaml.safe_load(Path(__file__).with_name("crate.yaml").read_text())
UNKNOWN = "unknown"


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
    manifest: Manifest
    inputs: list[Input]
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
    crate = _empty()
    known = yaml.safe_load((workflow / "config" / "sources.yaml").read_text())
    cff = yaml.safe_load((workflow / "CITATION.cff").read_text())
    person = _person(crate, agent)
    tools, steps = _workflow(crate, code, cff, sorted({x.manifest.stage for x in stages}))
    folders = {stage.folder: _artifact(crate, root, stage) for stage in stages}

    actions, controls = [], []
    others: dict[str, Any] = {}
    for made in by_identity(stages):
        name = made[0].manifest.stage
        read = {x.id: x for stage in made for x in _read_of_others(crate, known, stage)}
        inputs = [used for stage in made for used in stage.inputs if used.used.made]
        objects = [*dict.fromkeys([*(folders[used.folder] for used in inputs), *read.values()])]
        results = [folders[stage.folder] for stage in made]
        action = _action(crate, made, tools[name], objects, results, person)
        controls.append(_control(crate, action, steps[name]))
        for record in (record for stage in made for record in stage.records):
            _add_file(crate, record, about=action)
        actions.append(action)
        others |= read

    config = _beside(crate, extra)
    final = [folders[stage.folder] for stage in _last(stages)]
    run = _add(
        *(crate, "#run", "CreateAction"),
        **_span([stage.manifest for stage in stages]),
        name=f"run of the workflow into results/{root.name}",
        description=f"{len(actions)} stages, the first and the last as their manifests say; "
        "not all of them need to have run in one go",
        instrument=crate.mainEntity,
        object=[*config, *(others[key] for key in sorted(others))],
        result=final,
        agent=person,
    )
    engine = _add(crate, "#snakemake", "SoftwareApplication", **TEXTS["engine"])
    about = {"name": "Snakemake's run", "instrument": engine, "object": controls, "result": run}
    orchestration = _add(crate, "#orchestration", "OrganizeAction", **about)
    _root(crate, cff, f"{root.name}{'' if complete else ', a part of it'}", len(stages))
    crate.root_dataset["datePublished"] = run["endTime"]
    crate.root_dataset["mentions"] = [run, orchestration, *actions]
    if person:
        crate.root_dataset["author"] = person
    text = json.dumps(crate.metadata.generate(), indent=1, sort_keys=True, ensure_ascii=False)
    return text + "\n"


# Entities


def _empty() -> Any:
    try:
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise UserError(
            "the package rocrate is missing", "opd export", "pip install 'opd[export]'"
        ) from error
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TEXTS["terms"])
    return crate


def _properties(values: Mapping[str, Any]) -> dict[str, Any]:
    """A list of one as that one, as JSON-LD is flattened in a crate; nothing of what is empty."""
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in values.items()
        if value not in (None, [])
    }


def _add(crate: Any, identifier: str, kind: str, /, **values: Any) -> Any:
    """Add what is no file or folder. Values may be other entities."""
    from rocrate.model import ContextEntity

    properties = {"@type": kind, **_properties(values)}
    return crate.add(ContextEntity(crate, identifier, properties=properties))


def _add_file(crate: Any, file: File, **values: Any) -> Any:
    suffix = Path(file.path).suffix
    known = MimeTypes().guess_type(f"x{suffix}")[0]
    properties = {
        "name": Path(file.path).name,
        "contentSize": str(file.source.stat().st_size),
        "sha256": file.sha256,
        "encodingFormat": TEXTS["formats"].get(suffix) or known or "text/plain",
        **values,
    }
    return crate.add_file(dest_path=file.path, properties=properties)


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
        crate.get(profile) or _add(crate, profile, "CreativeWork", **about)
        for profile, about in TEXTS["profiles"].items()
    ]
    papers = []
    for paper in cff["references"]:
        entity = _work(crate, paper["identifiers"][0]["value"])
        entity["name"], entity["datePublished"] = paper["title"], str(paper["year"])
        papers.append(entity)
    root["citation"] = papers


# The workflow


def _workflow(
    crate: Any, code: Sequence[File], cff: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the main entity with its files; its tools and steps by stage."""
    files = {file.path: file for file in code}
    about = {"name": cff["title"], "version": str(cff["version"]), "license": cff["license"]}
    about |= {**TEXTS["workflow"], "sha256": files.pop("Snakefile").sha256}
    main = crate.add_workflow(dest_path="Snakefile", main=True, lang="snakemake", properties=about)
    for file in files.values():
        _add_file(crate, file)
    crate.add_file(dest_path="README.md", properties=TEXTS["readme"])
    tools = {name: _tool(crate, name, str(cff["version"])) for name in names}
    steps = {}
    for position, name in enumerate(names, 1):
        about = {"position": str(position), "name": f"rule {name}", "workExample": tools[name]}
        steps[name] = _add(crate, f"Snakefile#{name}", "HowToStep", **about)
    parts = {"hasPart": [*tools.values()], "step": [*steps.values()]}
    for key, value in _properties(parts).items():
        main[key] = value
    return tools, steps


def _tool(crate: Any, name: str, version: str) -> Any:
    """A stage of ``opd``, in the words of its function, which is not imported for that."""
    module, _, function = registry.STAGES[name].run.partition(":")
    path = Path(*module.split(".")).with_suffix(".py")
    tree = ast.parse((Path(opd.__file__).parents[1] / path).read_text())
    text = next(
        ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return _add(
        *(crate, f"#opd-{name}", "SoftwareApplication"),
        name=f"opd stage {name}",
        description=" ".join(text.partition("\n\n")[0].split()),
        softwareVersion=version,
        isBasedOn={"@id": f"src/{path.as_posix()}"},
    )


# Artifacts and what made them


def by_identity(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Artifacts that one computation has made: several folders may link the same."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(stage.manifest.identity, []).append(stage)
    return [*groups.values()]


def _artifact(crate: Any, root: Path, stage: Stage) -> Any:
    parts = [_add_file(crate, file) for file in (*stage.files, *stage.copies)]
    for file in stage.left_out:
        more = {"name": file.path, "description": f"not in this crate: {file.why}"}
        more |= {"contentSize": str(file.size), "sha256": file.sha256}
        parts.append(_add(crate, f"#{quote(file.path, safe='/@')}", "CreativeWork", **more))
    properties = {
        "name": stage.folder,
        "description": f"what `opd stage {stage.manifest.stage}` has made",
        "identifier": stage.manifest.identity,
        "hasPart": parts,
    }
    folder = f"results/{root.name}/{stage.folder}/"
    return crate.add_dataset(dest_path=folder, properties=_properties(properties))


def _action(
    crate: Any,
    made: Sequence[Stage],
    tool: Any,
    objects: list[Any],
    results: list[Any],
    person: Any,
) -> Any:
    """The computation of an artifact. Who or which machine ran it is not said but by ``person``."""
    manifest = made[0].manifest
    text = f"`opd stage {manifest.stage}` with the settings in its manifest.json (cfg)"
    if manifest.cfg.get("code") != code_digest(manifest.stage):
        text += ". Its code was another one than what lies in this crate"
    return _add(
        *(crate, f"#stage-{manifest.identity[:16]}", "CreateAction"),
        **_span([manifest]),
        name=f"{manifest.stage}: {', '.join(stage.folder for stage in made)}",
        description=text,
        instrument=tool,
        object=objects,
        result=results,
        actionStatus="http://schema.org/CompletedActionStatus",
        agent=person,
        resourceUsage=_usage(crate, manifest),
    )


def _control(crate: Any, action: Any, step: Any) -> Any:
    """That Snakemake had a computation done."""
    about = {"name": f"orchestration of {action['name']}", "instrument": step, "object": action}
    return _add(crate, action.id.replace("#stage-", "#step-"), "ControlAction", **about)


def _span(manifests: Sequence[Manifest]) -> dict[str, str]:
    """When the first of these stages started, and the last one ended."""
    starts = [datetime.fromisoformat(manifest.started) for manifest in manifests]
    lengths = [timedelta(seconds=manifest.seconds) for manifest in manifests]
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    end = max(ends).replace(microsecond=0)
    return {"startTime": min(starts).isoformat(), "endTime": end.isoformat()}


def _usage(crate: Any, manifest: Manifest) -> list[Any]:
    """Time, and what GPUs spent."""
    values = {"seconds": manifest.seconds, **(manifest.gpu or {})}
    if "utilisation" in values:
        values["utilisation"] = 100 * values["utilisation"]
    entities = []
    for name, about in TEXTS["usage"].items():
        if name in values:
            place = f"#{name.replace('_', '-')}-{manifest.identity[:16]}"
            more = {"propertyID": f"opd:{name}", "value": str(round(values[name], 2)), **about}
            entities.append(_add(crate, place, "PropertyValue", **more))
    return entities


# The run


def _beside(crate: Any, extra: Sequence[File]) -> list[Any]:
    """Add config and plan. The config, where there is one, is returned: the run was given it."""
    files = [_add_file(crate, file) for file in extra]
    config = [file for file in files if file.id.endswith("/config.yaml")]
    for file in config:
        about = ("configfile", "File", "#config", "all settings of the run")
        parameter = crate.add_formal_parameter(*about, properties={"workExample": file})
        del parameter["valueRequired"]  # there is a default, config/mini.yaml
        file["exampleOfWork"] = crate.mainEntity["input"] = parameter
    return config


def _last(stages: Sequence[Stage]) -> list[Stage]:
    """Artifacts that no other one was made from: what the run was for."""
    read = {source.folder for stage in stages for source in stage.inputs}
    return [stage for stage in stages if stage.folder not in read]


# What others made


def _read_of_others(crate: Any, known: Mapping[str, Any], stage: Stage) -> list[Any]:
    """The models and data of others that a stage has read or fetched, with what
    ``config/sources.yaml`` knows of them (``known``)."""
    manifest = stage.manifest
    cfg, name = manifest.cfg, manifest.stage
    entities = [
        _plain_file(crate, known, cfg, source) for source in stage.inputs if not source.used.made
    ]
    source = registry.source(name, cfg)
    if name not in ("fetch", "dataset", "prompts"):
        return entities
    if source.get("hub"):
        kind, revision = "models" if name == "fetch" else "datasets", source.get("revision", "")
        where = _hub(kind, source["hub"], revision)
        entities.append(_other(crate, known, f"{kind}/{source['hub']}", where, version=revision))
    elif name == "fetch" and manifest.numbers.get("packages"):
        name, _, version = manifest.numbers["packages"][0].partition("==")
        where = f"https://pypi.org/project/{name}/{version}/"
        entities.append(_other(crate, known, f"packages/{source['path']}", where, version=version))
    return entities


def _plain_file(crate: Any, known: Mapping[str, Any], cfg: Mapping[str, Any], source: Input) -> Any:
    """A file (or folder) that a stage has read. It is not packed: it is the user's, and may be
    others' work."""
    path, contents = Path(source.used.path), source.used.outputs
    named = cfg.get("path") if source.name == "files" else cfg.get("source", {}).get("path")
    key = f"files/{named if named and source.name in ('files', 'path') else path.name}"
    more = {"identifier": contents}
    if path.is_file() and digest({path.name: (sha256 := file_digest(path))}) == contents:
        more = {"sha256": sha256, "contentSize": str(path.stat().st_size)}
    return _other(crate, known, key, f"#{quote(key, safe='/')}", **more)


def _other(crate: Any, known: Mapping[str, Any], key: str, where: str, /, **values: Any) -> Any:
    about = known.get(key, {})
    licence, citation = about.get("licence", UNKNOWN), about.get("citation", UNKNOWN)
    based = None
    if "same_as" in about:
        kind, _, name = about["same_as"].partition("/")
        based = {"@id": _hub(kind, name, "")}
    values = {key: value for key, value in values.items() if value}
    return _add(
        *(crate, where, "CreativeWork"),
        name=key.partition("/")[2],
        license=UNKNOWN if licence == UNKNOWN else _licence(crate, licence),
        citation=UNKNOWN if citation == UNKNOWN else _work(crate, citation),
        isBasedOn=based,
        **values,
    )


def _hub(kind: str, name: str, revision: str) -> str:
    prefix = "datasets/" if kind == "datasets" else ""
    return f"https://huggingface.co/{prefix}{name}" + (f"/tree/{revision}" if revision else "")


def _licence(crate: Any, spdx: str) -> Any:
    return _add(crate, f"https://spdx.org/licenses/{spdx}", "CreativeWork", name=spdx)


def _work(crate: Any, citation: str) -> Any:
    """A paper by its arXiv number, or other works as they are cited."""
    arxiv = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", citation)
    if arxiv:
        return _add(crate, f"https://arxiv.org/abs/{arxiv[1]}", "ScholarlyArticle", name=citation)
    address = re.search(r"https://\S+", citation)
    where = address[0] if address else f"#{quote(citation)}"
    return _add(crate, where, "CreativeWork", name=citation)


def readme(name: str, targets: Sequence[str], left_out: Sequence[LeftOut]) -> str:
    """README.md of a crate: what to look at first, how to check it, and what is not in it."""
    from jinja2 import Template

    text = Path(__file__).with_name("crate_readme.md.jinja").read_text()
    page = Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    subject = f"what is behind {', '.join(targets)}" if targets else f"`results/{name}`"
    return page.render(name=name, subject=subject, licences=TEXTS["licences"], left_out=left_out)
