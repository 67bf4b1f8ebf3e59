"""From a config as it is written to one that is checked: defaults, sweeps, names, kept steps."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from opd.core.errors import UserError
from opd.core.files import bounded
from opd.core.schema import MOST_VALUES, load_yaml, read_yaml, valid
from opd.core.security import holds_secret
from opd.core.text import suggestion
from opd.models.source import hub_id, source
from opd.recipes.base import Plain, naming, references, unknown
from opd.recipes.config import DEFAULTS, Config
from opd.recipes.models import PRESETS, Keep, Kept, Model
from opd.recipes.outputs import Compared, experiment_of

# Keys of recipes that name models.
MODEL_KEYS = ("student", "teacher", "reference", "model", "models", "base", "judge", "encoder")
# Sections in which a recipe may sweep.
SWEPT = (
    *("prompts", "contamination", "sft_data", "models", "generations", "scores", "evaluations"),
    *("demonstrations", "probes"),
)


def resolve(raw: Mapping[str, Any]) -> Config:
    """Check a config, with defaults written in, sweeps written out and every name looked up.

    ``models`` then also holds each kept step, under MODEL@STEP; every other @STEP is gone (step 0
    is the student, the last one the model), and so is what released weights take the place of.
    Raises ``UserError`` with the key, the value and what is allowed.
    """
    try:  # what Snakemake has read may be more than ``load_yaml`` lets through
        raw = json.loads(json.dumps(bounded(raw, MOST_VALUES)))
    except (TypeError, ValueError) as error:
        remedy = "write plain values: text in quotes, numbers, lists, mappings"
        raise UserError(f"no plain values ({error})", "config", remedy) from None
    _refuse_secrets(raw)
    # As in Docker's files: where YAML has its anchors.
    raw = {key: value for key, value in raw.items() if not str(key).startswith("x-")}
    config = valid(Config, expanded(raw), "", "mend this key of the config", ["[key]"])
    _settle_models(config)
    _check_references(config)
    return config


def read(paths: Iterable[Path], entries: Iterable[str] = ()) -> Config:
    """The config of these files and KEY=VALUE settings, later ones on top, as Snakemake takes them.

    Raises ``UserError`` for a file that is not there or holds no config, and as ``resolve`` does.
    """
    return resolve(merged(paths, entries))


def merged(paths: Iterable[Path], entries: Iterable[str] = ()) -> dict[str, Any]:
    """The same as it is written, unchecked."""
    config: dict[str, Any] = {}
    for path in paths:
        config = merge(config, read_file(path))
    return merge(config, settings(entries))


def read_file(path: Path) -> dict[str, Any]:
    """What one file of a config holds. Raises ``UserError`` for a file that is not there, that is
    of an artifact, or that holds no config."""
    if not path.is_file():
        raise UserError("no such config", str(path), "mend the path, or name another: --configfile")
    in_results = path.absolute().is_relative_to(Path("results").absolute())
    if in_results and path.suffix not in (".yaml", ".yml"):
        reason = "it is no config: --configfile takes all that follows it"
        raise UserError(reason, str(path), "name targets before --configfile")
    return read_yaml(path, "write KEY: VALUE")


def typed(text: Any) -> Any:
    """A value of Snakemake's ``--config``, which hands over everything below the first level as
    text, with numbers, true, false and null as YAML reads them."""
    if isinstance(text, Mapping):
        return {key: typed(value) for key, value in text.items()}
    if isinstance(text, list):
        return [typed(value) for value in text]
    if not isinstance(text, str) or not text:
        return text
    try:
        value = load_yaml(text)
    except (ValueError, yaml.YAMLError):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def settings(entries: Iterable[str]) -> dict[str, Any]:
    """The settings of KEY=VALUE entries, read as Snakemake and the workflow read what follows
    ``--config``. Raises ``UserError`` for an entry of another form."""
    config: dict[str, Any] = {}
    for entry in entries:
        from snakemake.cli import parse_config  # takes half a second

        try:
            config = merge(config, typed(parse_config([entry])))
        except ValueError:
            remedy = f"write {_nested(entry)}"
            raise UserError(f"'{entry}' is no setting", "--config", remedy) from None
    return config


def _nested(entry: str) -> str:
    """What ``a.b.c=3`` was meant to be; of any other entry the form that it should have."""
    key, _, value = entry.partition("=")
    first, *others = key.split(".")
    if not (value and others and all(part.isidentifier() for part in (first, *others))):
        return "KEY=VALUE"
    for part in reversed(others):
        value = f"{{{part}: {value}}}"
    return f"'{first}={value}'"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A config with another on top, as Snakemake lays them: mappings key by key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _refuse_secrets(value: Any, where: str = "") -> None:
    """Settings are written into manifests and logs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_secrets(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_secrets(inner, f"{where}.{i}")
    elif isinstance(value, str) and holds_secret(value):
        raise UserError("it holds a token or a password", where, "put it into the environment")


def expanded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``defaults`` into each recipe, each ``sweep`` out as recipes of its own, and what is
    named by a text (``opd.models.source``) as the recipe of it. What goes by the name of a built-in
    protocol is laid over it, and a table's row over the arm that it names."""
    config = _with_arms(_with_sources(raw))
    defaults = config.get("defaults", {})
    _check_keys(defaults, DEFAULTS, "defaults")
    for stage, values in defaults.items():
        _check_keys(values, DEFAULTS[stage].model_fields, f"defaults.{stage}")
    for section in SWEPT:
        if not isinstance(config.get(section), Mapping):
            continue
        expanded: dict[str, Any] = {}
        for name, recipe in config[section].items():
            if not isinstance(recipe, Mapping):
                expanded[name] = recipe
                continue
            recipe = merge(defaults.get(section, {}), recipe)
            for stage in recipe.keys() & defaults.keys():
                if isinstance(recipe[stage], Mapping):
                    recipe[stage] = merge(defaults[stage], recipe[stage])
            where = f"{section}.{name}"
            for swept, written in _sweep(where, name, recipe):
                if swept in expanded:
                    remedy = "give one of them another name"
                    raise UserError(f"there are two recipes called '{swept}'", where, remedy)
                expanded[swept] = written
        config[section] = expanded
    protocols = config.get("protocols")
    if isinstance(protocols, Mapping):
        built_in = PRESETS["protocols"]
        config["protocols"] = {
            name: merge(built_in.get(name, {}), own) if isinstance(own, Mapping) else own
            for name, own in protocols.items()
        }
    return config


def _with_sources(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which models, prompts and benchmarks that are named by a text are recipes. A
    model that a recipe names so gets one of its own, by the last part of the text."""
    config = dict(raw)
    for section in ("models", "prompts", "benchmarks"):
        recipes = config.get(section)
        for name, recipe in recipes.items() if isinstance(recipes, Mapping) else ():
            where = f"{section}.{name}"
            if section == "models" and isinstance(recipe, str):
                recipe = source(recipe, where)
            if isinstance(recipe, Mapping):
                recipe = _with_hub(dict(recipe), section, where)
            config[section] = {**config[section], name: recipe}
    models = config.get("models", {})
    if isinstance(models, Mapping):
        models = dict(models)
        apart = ("world", "training", "interpreters")
        config |= {k: _named(v, k, models) for k, v in config.items() if k not in apart}
        config |= {"models": models | config.get("models", {})} if models else {}
    return config


def _with_hub(recipe: dict[str, Any], section: str, where: str) -> dict[str, Any]:
    """A recipe with the objects of the hub that it names by a text written out. A model's ``path``
    is one, too, unless it is below OPD_MODEL_DIR."""
    path = recipe.get("path")
    root = os.environ.get("OPD_MODEL_DIR", "/dev/null")
    if section == "models" and isinstance(path, str) and not Path(root, path).exists():
        if identifier := hub_id(path):
            del recipe["path"]
            recipe["hub"] = identifier
        elif path.startswith("results/"):
            recipe["path"] = f"./{path}"
    for key in ("hub", "released"):
        text = recipe.get(key)
        if isinstance(text, str):
            identifier = hub_id(text)
            if not identifier:
                remedy = "write ORG/NAME or ORG/NAME@REVISION"
                raise UserError(f"'{text}' is no id of the hub", f"{where}.{key}", remedy)
            if key == "released":
                identifier["hub"] = identifier.pop("id")
            recipe[key] = identifier
    return recipe


def _named(value: Any, key: str, models: dict[str, Any]) -> Any:
    """A part of a config with names in place of models that are named by a text; their recipes by
    these names are added to ``models``."""
    if isinstance(value, Mapping):
        return {inner: _named(part, str(inner), models) for inner, part in value.items()}
    if isinstance(value, list):
        return [_named(part, key, models) for part in value]
    if key not in MODEL_KEYS or not isinstance(value, str) or "/" not in value:
        return value
    recipe = source(value, key)
    name = Path(recipe["path"] if "path" in recipe else recipe["hub"]["id"]).name
    if models.setdefault(name, recipe) != recipe:
        remedy = "give this one a name of its own under models"
        raise UserError(f"'{value}': another model is called '{name}'", key, remedy)
    return name


def _with_arms(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with rows of tables that name an arm written out, its label after its experiment."""
    arms, tables = config.get("arms", {}), config.get("tables")
    if not isinstance(arms, Mapping) or not isinstance(tables, Mapping):
        return dict(config)

    def written(row: Any, where: str) -> Any:
        if not isinstance(row, Mapping) or "arm" not in row:
            return row
        name = str(row["arm"])
        if not isinstance(arms.get(name), Mapping):
            raise unknown(name, arms, f"{where}.arm", "arm")
        arm = {key: arms[name][key] for key in Compared.model_fields if key in arms[name]}
        arm["label"] = f"{experiment_of(name)} {arm.get('label')}"
        return arm | {key: value for key, value in row.items() if key != "arm"}

    tables = dict(tables)
    for name, table in tables.items():
        if isinstance(table, Mapping) and isinstance(table.get("rows"), list):
            rows = enumerate(table["rows"])
            rows_written = [written(row, f"tables.{name}.rows.{i}") for i, row in rows]
            tables[name] = {**table, "rows": rows_written}
    return {**config, "tables": tables}


def _check_keys(values: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"expected a mapping, got {values!r}", where, "write KEY: VALUE")
    for key in values:
        if key not in known:
            raise UserError("no such key", f"{where}.{key}", suggestion(str(key), known))


def _sweep(where: str, name: str, recipe: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """``sweep: {distill.loss.k: [1, 4]}`` -> recipes ``name-1`` and ``name-4``."""
    sweep = recipe.pop("sweep", None)
    if sweep is None:
        yield name, recipe
        return
    if not isinstance(sweep, Mapping) or [v and type(v) for v in sweep.values()] != [list]:
        raise UserError(f"got {sweep!r}", f"{where}.sweep", "write one KEY: [VALUE, ...]")
    ((key, values),) = sweep.items()
    for value in values:
        swept = value
        for part in reversed(key.split(".")):
            swept = {part: swept}
        yield f"{name}-{value}", merge(recipe, swept)


def _settle_models(config: Config) -> None:
    """Write out what models leave to others: chat templates, released weights, kept steps."""
    models = config.models
    for name, options in {name: _chat_template(models, name) for name in models}.items():
        models[name].chat_template = options
    released = {name: model for name, model in models.items() if model.released}
    if isinstance(config.use_released, list):
        for name in config.use_released:
            if name not in models:
                raise unknown(name, models, "use_released", "model")
            if name not in released:
                names = ", ".join(released) or "none"
                remedy = f"leave it out, or name some under models.{name}.released (there: {names})"
                raise UserError(f"model '{name}' has no released weights", "use_released", remedy)
        released = {name: released[name] for name in config.use_released}
    for name, model in released.items() if config.use_released else ():
        models[name] = Model(hub=model.released, chat_template=model.chat_template)
    for recipe, key, where, mark in list(naming(config)):
        named = getattr(recipe, key)
        if mark.section == "models" and isinstance(named, list):
            setattr(recipe, key, [_without_step(models, name, where) for name in named])
        elif mark.section == "models" and named is not None:
            setattr(recipe, key, _without_step(models, named, where))
    for name, model in list(models.items()):
        if model.trained:
            for step in sorted({*model.trained.keep_steps} - {0, model.trained.steps}):
                keep = Keep(model=name, step=step)
                models[f"{name}@{step}"] = Kept(keep=keep, chat_template=model.chat_template)


def _chat_template(
    models: Mapping[str, Model], name: str, seen: tuple[str, ...] = ()
) -> dict[str, Plain]:
    """A model's chat template options: its own, or those of the model it was trained from."""
    run, _, step = name.partition("@")
    model = models.get(run)
    if model is None or name in seen:  # ``_check_references`` reports both
        return {}
    if model.trained and (step == "0" or not model.chat_template):
        return _chat_template(models, model.trained.student, (*seen, name))
    return model.chat_template


def _without_step(
    models: Mapping[str, Model], name: str, where: str, seen: tuple[str, ...] = ()
) -> str:
    """The name of a model without a step where one exists: the student's for step 0, the model's
    own for its last step. Raises ``UserError`` for a step that is not kept."""
    run, at, digits = name.partition("@")
    if not at:
        return name
    if run not in models:
        raise unknown(run, models, where, "models recipe")
    if name in seen:
        loop = " -> ".join([*seen[seen.index(name) :], name])
        raise UserError(f"refers to itself: {loop}", where, "break the loop")
    trained, step = models[run].trained, int(digits)
    if trained is None:
        raise UserError(f"'{name}': {run} is not trained here", where, "name it without a step")
    if step == 0:
        return _without_step(models, trained.student, where, (*seen, name))
    if step == trained.steps:
        return run
    if step not in trained.keep_steps:
        kept = sorted({0, *trained.keep_steps, trained.steps or 0})
        raise UserError(
            f"'{name}': step {step} of {run} is not kept, only {', '.join(map(str, kept))} are",
            where,
            f"add it to keep_steps of models.{run}.{models[run].kind}",
        )
    return name


def _check_references(config: Config) -> None:
    """Every name refers to a recipe that exists, and none to itself through others."""
    for where, section, name in references(config):
        if name not in getattr(config, section):
            raise unknown(name, getattr(config, section), where, f"{section} recipe")
    graph = {
        (section, name): [(kind, target) for _, kind, target in references(recipe)]
        for section, recipes in config
        if isinstance(recipes, dict) and section != "defaults"
        for name, recipe in recipes.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        loop = [".".join(node) for node in reversed(error.args[1])]
        raise UserError(
            f"refers to itself: {' -> '.join(loop)}", loop[0], "break the loop"
        ) from None
