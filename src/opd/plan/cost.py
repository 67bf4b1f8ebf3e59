"""What a plan's jobs have to do: models, sequences and their lengths, the bytes that they leave,
and their order. How long that takes is worked out in ``opd.plan.work``."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from opd.data import grammar
from opd.plan import local, timing
from opd.plan.shape import Shape, from_config
from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES

Artifacts = Mapping[str, Artifact]

# Bytes a parameter (weights in float32, with Adam's two moments, and those of FSDP, which has the
# weights twice: as a model and as a state), of what is fetched, and of a token.
MODEL_BYTES, CHECKPOINT_BYTES, FSDP_BYTES, FETCHED_BYTES, TOKEN_BYTES = 4, 12, 16, 2, 4
# Of a token's scores: what is kept of each of the k tokens (id and log-probability), of each of the
# k of a named student, and besides.
SCORE_BYTES, NAMED_BYTES, SCORED_TOKEN_BYTES = 6, 8, 8
# Tokens of the miniature world (opd.models.init), in characters and in words.
WORLD_VOCABULARY = {None: 54, "words": 5 + len(grammar.vocabulary())}
# Trials until a question has its demonstrations, where it is not hard.
TRIALS = 12

# Kinds of work of the stages that run models, and the input that is the model.
_SCORED_BY_BOTH = {"score": "student", "teacher": "teacher"}
_TRAINED_ON_ITS_OWN = {"sample": "student", "update": "student"}
USES = {
    "distill": {**_TRAINED_ON_ITS_OWN, "teacher": "teacher"},
    "grpo": _TRAINED_ON_ITS_OWN,
    "sft": {"update": "student"},
    "indicators": {**_SCORED_BY_BOTH, "sample": "student"},
    "judge": {"sample": "judge", "score": "judge"},
    "embed": {"score": "encoder"},
    "score": {"score": "teacher", "student": "named_student"},
    "pair": _SCORED_BY_BOTH,
    "signal": _SCORED_BY_BOTH,
    "alignment": _SCORED_BY_BOTH,
    **{key: {"sample": "model"} for key in ("generate", "evaluate", "demonstrate", "summarise")},
    **{stage: {"sample": "teacher"} for stage in ("prefix", "continuation")},
    **{stage: {"sample": "student"} for stage in ("screening", "tree")},
}


class Facts(NamedTuple):
    """What the work of stages depends on besides their settings: ``tables`` is what
    config/calibration.yaml says of sizes that no config holds, ``numbers`` those that finished
    stages have counted, by folder, ``released`` kept steps that go (``opd.plan.outputs``)."""

    artifacts: Artifacts
    tables: Mapping[str, Any]
    numbers: Mapping[str, Mapping[str, Any]] = {}
    released: Collection[str] = ()


class Load(NamedTuple):
    """``sequences`` that a stage samples, scores or trains on, after prompts of ``prompt`` tokens.
    Responses that it samples have at most ``limit`` tokens, those that it reads ``written``, and a
    sequence that it reads has at most ``most``."""

    sequences: float
    prompt: float
    limit: float
    written: float
    most: float


def sharded(cfg: Mapping[str, Any]) -> bool:
    """Whether a training run is sharded over its processes."""
    config = str(cfg.get("execution", {}).get("accelerate"))
    return bool(cfg.get("processes", 1) > 1 and "fsdp" in config)


def checkpoint_bytes(cfg: Mapping[str, Any]) -> int:
    """Bytes a trained parameter of a checkpoint of a training run."""
    return FSDP_BYTES if sharded(cfg) else CHECKPOINT_BYTES


def width(cfg: Mapping[str, Any], device: str) -> int:
    """Devices that a job has for itself: processes, on a processor threads."""
    threads = cfg.get("threads", cfg.get("execution", {}).get("threads", 1))
    return int(cfg.get("processes", 1) * (threads if device == "cpu" else 1))


def origin(artifacts: Artifacts, folder: str) -> Artifact | None:
    """The model that a trained or kept one began as, any other itself. None where it is unknown."""
    artifact = artifacts.get(folder)
    source = artifact and (artifact.named.get("student") or artifact.named.get("model"))
    return origin(artifacts, source) if source else artifact


def shape(facts: Facts, folder: str) -> Shape | None:
    """The shape of a model: of our own from its recipe, of others by the config.json that lies here
    or is listed; of a trained or kept one that of its student. None where nothing tells."""
    if not (made := origin(facts.artifacts, folder)):
        return None
    cfg = made.cfg
    if made.stage == "init":
        key = cfg["hidden"] // cfg["heads"]
        sizes = (cfg["hidden"], cfg["intermediate"], cfg["hidden"], key * cfg["kv_heads"])
        vocabulary = WORLD_VOCABULARY[cfg.get("world", {}).get("grammar")]
        return Shape(cfg["layers"], *sizes, vocabulary, tied=True, normed=key)
    listed = facts.tables.get("shapes", {})
    name = cfg.get("hub") or cfg.get("path", "")
    return from_config(local.config(made.named.get("files", "")) or listed.get(name, {}))


def parameters(facts: Facts, folder: str) -> float:
    """Parameters of a model: by its shape, by its weights where they lie here, as listed, or as the
    name says ("...-1.5B"); of a trained or kept one those of its student. NaN where nothing
    tells."""
    if not (made := origin(facts.artifacts, folder)):
        return math.nan
    if known := shape(facts, folder):
        return float(known.parameters)
    if not math.isnan(count := local.parameters(made.named.get("files", ""))):
        return count
    name = made.cfg.get("hub") or made.cfg.get("path", "")
    stated = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", name, re.IGNORECASE)
    size = float(stated[1]) * {"B": 1e9, "M": 1e6}[stated[2].upper()] if stated else math.nan
    return float(facts.tables.get("parameters", {}).get(name, size))


def trained(cfg: Mapping[str, Any], student: Shape) -> int:
    """Parameters that a training run trains: its student's, or those of an adapter."""
    if "adapter" not in cfg:
        return student.parameters
    return student.adapter(cfg["adapter"]["lora"]["r"], cfg["adapter"]["lora"]["target_modules"])


def trained_by(facts: Facts, folder: str) -> float:
    """The same of the run in a folder; as if it had no adapter where no shape is known."""
    known = shape(facts, folder)
    return trained(facts.artifacts[folder].cfg, known) if known else parameters(facts, folder)


def rows(facts: Facts, folder: str) -> float:
    """Rows of a prompt set, of SFT data or of generations: as counted when it was made, else the
    most that its recipe can give. NaN where nothing tells."""
    if folder not in facts.artifacts:
        return math.nan
    artifact, counted = facts.artifacts[folder], facts.numbers.get(folder, {})
    cfg, inputs = artifact.cfg, artifact.named
    made = [counted[n] for n in ("kept", "generations", "pairs", "prompts") if n in counted]
    if made:
        return float(made[0])
    if artifact.stage == "corpus":
        return float(cfg["n"])
    if artifact.stage == "generate":
        return rows(facts, inputs["prompts"]) * cfg["samples"]
    if artifact.stage == "filter":
        per_prompt = rows(facts, inputs["prompts"]) * (cfg.get("per_prompt") or math.inf)
        return min(rows(facts, inputs["generations"]), per_prompt, cfg.get("n") or math.inf)
    # A sample is as large as asked for: the stage refuses a set that is smaller.
    sample = cfg.get("sample") or {}
    if "questions" in sample:
        return sample["questions"] * _rows_of_a_question(facts, folder)
    if sample:
        return float(sample.get("n") or sample["first"])
    if "prompts" in inputs:
        return rows(facts, inputs["prompts"])
    source, listed = cfg.get("source", {}), facts.tables.get("rows", {})
    if "world" in source:
        return float(source["world"]["n"])
    if not math.isnan(count := local.rows(inputs.get("path", ""))):
        return count
    name = source.get("hub") or source.get("path")
    return float(listed.get(f"{name}:{source.get('config')}", listed.get(name, math.nan)))


def _rows_of_a_question(facts: Facts, folder: str) -> float:
    """How often the source of a prompt set asks each question; once if nothing else is listed."""
    if folder not in facts.artifacts:
        return math.nan
    cfg, inputs = facts.artifacts[folder].cfg, facts.artifacts[folder].named
    if cfg.get("distinct") == "question":
        return 1.0
    if "prompts" in inputs:
        return _rows_of_a_question(facts, inputs["prompts"])
    source = cfg.get("source", {})
    listed = facts.tables.get("rows_of_a_question", {})
    return float(listed.get(source.get("hub") or source.get("path"), 1))


def problems(facts: Facts, artifact: Artifact) -> float:
    """Problems that an evaluation asks, all benchmarks together. NaN where nothing tells."""
    inputs, listed, total = artifact.named, facts.tables.get("problems", {}), 0.0
    for benchmark in artifact.cfg["benchmarks"]:
        count = rows(facts, inputs.get(f"prompts:{benchmark['name']}", ""))
        total += listed.get(benchmark["task"], math.nan) if math.isnan(count) else count
    return total


def load(facts: Facts, artifact: Artifact, natural: float) -> Load:
    """The load of a stage that runs a model, where responses that nothing cuts have ``natural``
    tokens on average. Sizes that nothing tells are NaN."""
    cfg, inputs = artifact.cfg, artifact.named
    limit = (cfg.get("protocol") or cfg).get("max_new_tokens") or cfg.get("max_tokens", 0)
    if artifact.stage == "continuation":
        limit -= sum(cfg["prefixes"]) / len(cfg["prefixes"])
    written = limit  # or what is read of other responses
    data = facts.artifacts.get(inputs.get("data", ""))
    if generations := inputs.get("generations") or (data and data.named.get("generations")):
        source = facts.artifacts.get(generations)
        written = source.cfg.get("max_new_tokens", math.nan) if source else math.nan
    prompt = min(facts.tables["prompt_tokens"], cfg.get("max_prompt_tokens", math.inf))
    count = _sequences(facts, artifact, timing.mean(limit, natural))
    return Load(count, prompt, limit, written, cfg.get("max_tokens", math.inf))


def _sequences(facts: Facts, artifact: Artifact, response: float) -> float:
    """Sequences that a stage samples, scores or trains on; ``response`` is their mean length."""
    cfg, inputs, stage = artifact.cfg, artifact.named, artifact.stage
    if stage == "evaluate":
        return problems(facts, artifact) * cfg["protocol"]["samples"]
    if stage == "summarise":
        return _demonstrations(facts, inputs["demonstrations"])
    if stage == "alignment":
        return _paths(facts, inputs["tree"])
    source = next((inputs[n] for n in ("generations", "prompts", "data") if n in inputs), "")
    count = rows(facts, source)
    if STAGES[stage].trains:
        prompts = cfg.get("epochs", 0) * count * (1 - cfg.get("held_out", 0))
        if cfg.get("steps"):
            prompts = cfg["steps"] * (cfg.get("prompts_per_step") or cfg["batch_size"])
        return prompts * (cfg.get("rollouts_per_prompt") or cfg.get("group_size", 1))
    count = min(count, cfg.get("n") or cfg.get("questions") or math.inf)
    samples = cfg.get("samples", 1)
    if stage == "prefix":  # alone, and after a prefix
        samples = 2
    elif stage == "continuation":  # by the teacher, and perhaps by the student too
        samples *= len(cfg["prefixes"]) * (2 if cfg.get("baseline") == "resampled" else 1)
    elif stage == "demonstrate":
        samples = min(TRIALS, cfg["trials"])
    elif stage == "screening":
        samples *= 1 + len(cfg["contexts"])
    elif stage == "tree":
        # Besides the rollouts, what is sampled after the tokens that the teachers pick, from
        # halfway on average, if none were picked twice.
        windows = math.ceil(math.log2(1 + response / cfg["first_window"]))
        paths = cfg["correct_paths"] + cfg["incorrect_paths"]
        picks = paths * windows * (cfg["top_gradient"] + cfg["top_difference"])
        samples = cfg["rollouts"] + picks * len(cfg["teachers"]) * cfg["min_visits"] / 2
    return count * samples


def _demonstrations(facts: Facts, folder: str) -> float:
    """Texts that demonstrations have at most. NaN where nothing tells."""
    if folder not in facts.artifacts:
        return math.nan
    cfg, inputs = facts.artifacts[folder].cfg, facts.artifacts[folder].named
    if "demonstrations" in inputs:  # as many summaries
        return _demonstrations(facts, inputs["demonstrations"])
    questions = min(rows(facts, inputs["prompts"]), cfg.get("n") or math.inf)
    return questions * (cfg["correct"] + cfg["wrong"])


def _paths(facts: Facts, folder: str) -> float:
    """Paths that a tree has at most. NaN where nothing tells."""
    if folder not in facts.artifacts:
        return math.nan
    cfg, inputs = facts.artifacts[folder].cfg, facts.artifacts[folder].named
    questions = min(rows(facts, inputs["prompts"]), cfg.get("questions") or math.inf)
    return questions * (cfg["correct_paths"] + cfg["incorrect_paths"])


def critical_path(artifacts: Artifacts, seconds: Mapping[str, float]) -> float:
    """Longest chain of jobs that wait for each other; jobs not in ``seconds`` take none."""
    ends: dict[str, float] = {}
    for folder in closure(seconds, artifacts):
        start = max((ends.get(i, 0.0) for i in artifacts[folder].inputs), default=0.0)
        ends[folder] = start + seconds.get(folder, 0.0)
    return max(ends.values(), default=0.0)


def disk(facts: Facts, folder: str) -> float:
    """Bytes that a stage leaves for good: weights, responses (in its table and in the store's
    cache), log-probabilities of their tokens, scores. Smaller files are not counted, nor links to
    weights that a run has kept."""
    stage, cfg = facts.artifacts[folder].stage, facts.artifacts[folder].cfg
    if stage == "fetch":
        return FETCHED_BYTES * parameters(facts, folder)
    if stage == "init" or STAGES[stage].trains:
        stay, _ = _kept(facts, folder)
        return MODEL_BYTES * parameters(facts, folder) * (1 + stay)
    if stage not in ("generate", "evaluate", "score"):
        return 0.0
    natural = facts.tables["assumed"]["natural_tokens"]["middle"]
    sampled = load(facts, facts.artifacts[folder], natural)
    if stage == "score":
        tokens = sampled.sequences * timing.mean(sampled.written, natural)
        named = NAMED_BYTES if "named_student" in facts.artifacts[folder].named else 0
        return ((SCORE_BYTES + named) * cfg["k"] + SCORED_TOKEN_BYTES) * tokens
    copies = 3 if cfg.get("logprobs") else 2
    return copies * TOKEN_BYTES * sampled.sequences * timing.mean(sampled.limit, natural)


def passing(facts: Facts, folder: str) -> float:
    """Bytes of the kept steps of a run that go once all that reads them is made."""
    _, go = _kept(facts, folder)
    return MODEL_BYTES * parameters(facts, folder) * go if go else 0.0


def _kept(facts: Facts, folder: str) -> tuple[int, int]:
    """How many of the steps that a run keeps stay, and how many go."""
    run, _, seed = folder.rpartition("/")
    keep_steps = facts.artifacts[folder].cfg.get("execution", {}).get("keep_steps", ())
    go = sum(f"{run}@{step}/{seed}" in facts.released for step in keep_steps)
    return len(keep_steps) - go, go


class Room(NamedTuple):
    """Bytes of the disk: those that stay, the most that checkpoints take besides at a time, the
    most that kept steps do that go, and all of these together."""

    stays: float
    running: float
    passing: float
    kept: float


def room(facts: Facts, widths: Mapping[str, int], workers: int) -> Room:
    """The disk that jobs need while ``workers`` devices are at work; ``widths``: devices of each
    job, by folder. A run has two checkpoints. Of kept steps that go there are those of two runs for
    each that trains: its own, and those of the one before, which are being evaluated."""
    running = [
        2
        * checkpoint_bytes(facts.artifacts[folder].cfg)
        * trained_by(facts, folder)
        * (workers // min(width, workers))
        for folder, width in widths.items()
        if STAGES[facts.artifacts[folder].stage].trains
    ]
    kept = {folder: passing(facts, folder) for folder in widths}
    most, devices = 0.0, 0
    for folder, size in sorted(kept.items(), key=lambda entry: -entry[1]):
        if devices < 2 * workers:
            most, devices = most + size, devices + min(widths[folder], workers)
    stays = sum(disk(facts, folder) for folder in widths)
    return Room(stays, max(running, default=0.0), most, sum(kept.values()))
