"""What artifacts of a plan cost: work in tokens, seconds on a machine, bytes, and paths.

Seconds are counted in those of a reference machine (config/calibration.yaml): a measured step gives
seconds per token and parameter for each phase, and other work is scaled from there, in proportion
to tokens and to parameters (2N FLOPs a token forward, 4N backward; sampling reads N weights a
token). What finished stages took in terms of that is measured (``opd.plan.calibrate``).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES

Artifacts = Mapping[str, Artifact]

# What trains models and keeps weights in float32, with Adam's two moments in its checkpoints.
TRAINED = ("init", "sft", "grpo", "distill")
MODEL_BYTES, CHECKPOINT_BYTES, FETCHED_BYTES, TOKEN_BYTES = 4, 12, 2, 4
# Characters and special tokens of the miniature world (opd.world.run_init).
WORLD_VOCABULARY = 54


@dataclass(frozen=True)
class Facts:
    """What the work of stages depends on besides their settings.

    ``tables`` is what config/calibration.yaml says of sizes that no config holds; ``numbers`` those
    of finished stages by folder; ``natural`` the mean response length in tokens if nothing cut
    responses, by parameters of the model.
    """

    artifacts: Artifacts
    tables: Mapping[str, Any]
    numbers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    natural: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """Tokens and parameters of each phase: {phase: (tokens, parameters)}, the phases being those of
    the reference step (sample, teacher, score, update); ``tokens`` are those that
    a stage is spoken of by (sampled ones, or, in SFT, those trained on); ``floor`` is the number of
    tokens that have to be sampled one after the other."""

    phases: Mapping[str, tuple[float, float]]
    tokens: float
    parameters: float
    floor: float = 0.0


def named(artifact: Artifact) -> dict[str, str]:
    """The inputs of an artifact by name."""
    return dict(zip(artifact.cfg.get("inputs", []), artifact.inputs, strict=True))


def width(cfg: Mapping[str, Any], device: str) -> int:
    """Devices that a job has for itself: processes, on a processor threads."""
    threads = cfg.get("threads", cfg.get("execution", {}).get("threads", 1))
    return int(cfg.get("processes", 1) * (threads if device == "cpu" else 1))


def world_parameters(cfg: Mapping[str, Any]) -> float:
    """Parameters of a Qwen3 model with tied embeddings over the miniature world's characters."""
    hidden, inner = cfg["hidden"], cfg["intermediate"]
    head = hidden // cfg["heads"]
    queries, keys = head * cfg["heads"], head * cfg["kv_heads"]
    attention = hidden * queries * 2 + hidden * keys * 2 + 2 * head
    layer = attention + 3 * hidden * inner + 2 * hidden
    return float(WORLD_VOCABULARY * hidden + cfg["layers"] * layer + hidden)


def parameters(facts: Facts, folder: str) -> float:
    """Parameters of a model: of our own from its shape, of others as listed, or as the name says
    ("...-1.5B"); of a trained or kept one those of its student. NaN where nothing tells."""
    if folder not in facts.artifacts:
        return math.nan
    artifact = facts.artifacts[folder]
    inputs = named(artifact)
    for source in ("student", "model"):
        if source in inputs:
            return parameters(facts, inputs[source])
    if artifact.verb == "init":
        return world_parameters(artifact.cfg)
    name = str(artifact.cfg.get("hub") or artifact.cfg.get("index") or artifact.cfg.get("path", ""))
    listed = facts.tables.get("parameters", {}).get(name)
    if listed is not None:
        return float(listed)
    said = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", name, re.IGNORECASE)
    if said is None:
        return math.nan
    return float(said[1]) * {"B": 1e9, "M": 1e6}[said[2].upper()]


def rows(facts: Facts, folder: str) -> float:
    """Rows of a prompt set, of SFT data or of generations: as counted when it was made, else the
    most that its recipe can give. NaN where nothing tells."""
    if folder not in facts.artifacts:
        return math.nan
    counted = facts.numbers.get(folder, {})
    artifact = facts.artifacts[folder]
    key = {"prompts": "prompts", "corpus": "pairs", "generate": "generations"}
    for name in ("kept", key.get(artifact.verb, "")):
        if name in counted:
            return float(counted[name])
    cfg, inputs = artifact.cfg, named(artifact)
    if artifact.verb == "corpus":
        return float(cfg["n"])
    if artifact.verb == "generate":
        return rows(facts, inputs["prompts"]) * cfg["samples"]
    if artifact.verb == "filter":
        most = rows(facts, inputs["generations"])
        if cfg.get("per_prompt"):
            most = min(most, rows(facts, inputs["prompts"]) * cfg["per_prompt"])
        return min(most, cfg.get("n") or math.inf)
    source = cfg.get("source", {})
    if "prompts" in inputs:
        most = rows(facts, inputs["prompts"])
    elif "world" in source:
        most = float(source["world"]["n"])
    else:
        listed, name = facts.tables.get("rows", {}), source.get("hub") or source.get("path")
        most = float(listed.get(f"{name}:{source.get('config')}", listed.get(name, math.nan)))
    sample = (cfg.get("sample") or {}).get("n")
    # A sample is as large as asked for: the stage refuses a set that is smaller.
    return float(sample) if sample else most


def problems(facts: Facts, artifact: Artifact) -> float:
    """Problems that an evaluation asks, all benchmarks together."""
    inputs, total = named(artifact), 0.0
    for benchmark in artifact.cfg["benchmarks"]:
        listed = facts.tables.get("problems", {}).get(benchmark["task"])
        prompts = inputs.get(f"prompts:{benchmark['name']}")
        known = rows(facts, prompts) if prompts else math.nan
        total += known if not math.isnan(known) else float(listed or math.nan)
    return total


def mean_response(limit: float, natural: float) -> float:
    """Mean tokens of responses that end by themselves at a constant rate, after ``natural`` tokens
    on average, and are cut at ``limit``."""
    return limit if math.isinf(natural) else natural * -math.expm1(-limit / natural)


def natural_length(mean: float, limit: float) -> float:
    """Inverse of ``mean_response``: what the mean would be if nothing were cut. Infinite where
    (nearly) everything is cut."""
    if mean >= 0.99 * limit:
        return math.inf
    low, high = mean, 100 * limit
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_response(limit, middle) < mean else (low, middle)
    return high


def work(facts: Facts, folder: str) -> Work | None:
    """The work of a stage that runs a model; None for the others."""
    artifact = facts.artifacts[folder]
    cfg, inputs = artifact.cfg, named(artifact)
    typical = facts.tables["prompt_tokens"]
    asked = min(typical, cfg.get("max_prompt_tokens", typical))

    def response(limit: float, size: float) -> float:
        return mean_response(limit, _natural(facts, size))

    if artifact.verb in ("distill", "grpo"):
        student = parameters(facts, inputs["student"])
        each = response(cfg["max_new_tokens"], student)
        per_step = cfg["prompts_per_step"] * (cfg.get("rollouts_per_prompt") or cfg["group_size"])
        steps = cfg.get("steps") or math.ceil(
            cfg["epochs"] * rows(facts, inputs["prompts"]) / cfg["prompts_per_step"]
        )
        sampled, whole = steps * per_step * each, steps * per_step * (asked + each)
        phases = {
            "sample": (sampled, student),
            "score": (whole, student),
            "update": (whole, student),
        }
        if artifact.verb == "distill":
            phases["teacher"] = (whole, parameters(facts, inputs["teacher"]))
        return Work(phases, sampled, student, steps * each)
    if artifact.verb == "sft":
        student = parameters(facts, inputs["student"])
        share = 1 - cfg.get("held_out", 0)
        sequences = (
            cfg["steps"] * cfg["batch_size"]
            if cfg.get("steps")
            else cfg["epochs"] * rows(facts, inputs["data"]) * share
        )
        tokens = sequences * min(cfg["max_tokens"], asked + response(cfg["max_tokens"], student))
        return Work({"update": (tokens, student)}, tokens, student)
    if artifact.verb in ("generate", "evaluate"):
        size = parameters(facts, inputs["model"])
        how = cfg["protocol"] if artifact.verb == "evaluate" else cfg
        questions = (
            problems(facts, artifact)
            if artifact.verb == "evaluate"
            else rows(facts, inputs["prompts"])
        )
        each = response(how["max_new_tokens"], size)
        tokens = questions * how["samples"] * each
        return Work({"sample": (tokens, size)}, tokens, size, each)
    if artifact.verb == "prefix":
        teacher, limit = parameters(facts, inputs["teacher"]), cfg["max_new_tokens"]
        # Alone, and after a prefix.
        tokens = 2 * rows(facts, inputs["generations"]) * response(limit, teacher)
        return Work({"sample": (tokens, teacher)}, tokens, teacher, 2 * response(limit, teacher))
    if artifact.verb == "judge" and "judge" in inputs:
        judge = parameters(facts, inputs["judge"])
        count = rows(facts, inputs["generations"])
        given = asked + response(
            facts.artifacts[inputs["generations"]].cfg["max_new_tokens"], judge
        )
        phases = {"score": (count * given, judge), "sample": (count * cfg["max_new_tokens"], judge)}
        return Work(phases, count * cfg["max_new_tokens"], judge, cfg["max_new_tokens"])
    if artifact.verb in ("pair", "signal", "continuation", "indicators"):
        return _probe(facts, artifact, asked)
    if artifact.verb in ("demonstrate", "screening", "tree"):
        return _microscope(facts, artifact)
    if artifact.verb == "embed" and "encoder" in inputs:
        size = parameters(facts, inputs["encoder"])
        tokens = rows(facts, inputs["prompts"]) * typical
        return Work({"score": (tokens, size)}, tokens, size)
    return None


def _probe(facts: Facts, artifact: Artifact, asked: float) -> Work:
    """Rollouts under student and teacher (pair, signal), sampled before that (indicators), or what
    the teacher makes of their beginnings (continuation; the student, too, where it is resampled).
    """
    cfg, inputs = artifact.cfg, named(artifact)
    student, teacher = (parameters(facts, inputs[side]) for side in ("student", "teacher"))
    if artifact.verb == "continuation":
        limit = cfg["max_new_tokens"]
        natural = _natural(facts, teacher)
        each = sum(mean_response(limit - prefix, natural) for prefix in cfg["prefixes"])
        tokens = rows(facts, inputs["generations"]) * cfg["samples"] * each
        # Two models in turn cost what one does that has the parameters of both.
        both = student if cfg.get("baseline") == "resampled" else 0.0
        return Work({"sample": (tokens, teacher + both)}, tokens, teacher, each)
    if artifact.verb in ("pair", "signal"):
        count = rows(facts, inputs["generations"])
        limit = facts.artifacts[inputs["generations"]].cfg["max_new_tokens"]
    else:
        count = min(cfg["n"], rows(facts, inputs["prompts"])) * cfg["samples"]
        limit = cfg["max_new_tokens"]
    each = mean_response(limit, _natural(facts, student))
    whole = count * (asked + each)
    phases = {"score": (whole, student), "teacher": (whole, teacher)}
    if artifact.verb == "indicators":
        phases["sample"] = (count * each, student)
    return Work(phases, count * each, student, each if "sample" in phases else 0.0)


# Trials until a question has its demonstrations, where it is not hard.
TRIALS = 12


def _microscope(facts: Facts, artifact: Artifact) -> Work:
    """Responses of the student to each question; of a tree also what is sampled after the tokens
    that its teachers pick, from halfway on average, if none were picked twice."""
    cfg, inputs = artifact.cfg, named(artifact)
    size = parameters(facts, inputs["model" if artifact.verb == "demonstrate" else "student"])
    each = mean_response(cfg["max_new_tokens"], _natural(facts, size))
    questions = rows(facts, inputs["prompts"])
    questions = min(questions, cfg.get("n") or cfg.get("questions") or questions)
    if artifact.verb == "demonstrate":
        responses = float(min(TRIALS, cfg["trials"]))
    elif artifact.verb == "screening":
        responses = float(cfg["samples"] * (1 + len(cfg["contexts"])))
    else:
        windows = math.ceil(math.log2(1 + each / cfg["first_window"]))
        paths = cfg["correct_paths"] + cfg["incorrect_paths"]
        picks = paths * windows * (cfg["top_gradient"] + cfg["top_difference"])
        picked = picks * len(cfg["teachers"]) * cfg["min_visits"]
        responses = cfg["rollouts"] + picked / 2
    tokens = questions * responses * each
    return Work({"sample": (tokens, size)}, tokens, size, each)


def _natural(facts: Facts, size: float) -> float:
    """Natural response length of a model: as measured for one of about its size, else assumed."""
    near = [s for s in facts.natural if 1 / 4 <= s / size <= 4]
    if near:
        return facts.natural[min(near, key=lambda s: abs(math.log(s / size)))]
    return float(facts.tables["natural_tokens"])


def reference_seconds(done: Work, tables: Mapping[str, Any]) -> float:
    """Seconds that the reference machine would take (all of its phases, one after the other)."""
    step = tables["reference"]
    each = mean_response(step["max_new_tokens"], tables["natural_tokens"])
    seconds = 0.0
    for phase, (tokens, size) in done.phases.items():
        per_sequence = each if phase == "sample" else each + tables["prompt_tokens"]
        there = step["sequences"] * per_sequence * step["parameters"]
        seconds += step["seconds"][phase] * tokens * size / there
    return seconds


def critical_path(artifacts: Artifacts, seconds: Mapping[str, float]) -> float:
    """Longest chain of jobs that wait for each other, in seconds; jobs not in ``seconds`` take
    none."""
    ends: dict[str, float] = {}
    for folder in closure(seconds, artifacts):
        start = max((ends.get(i, 0.0) for i in artifacts[folder].inputs), default=0.0)
        ends[folder] = start + seconds.get(folder, 0.0)
    return max(ends.values(), default=0.0)


def wall_clock(total: float, longest: float, workers: int) -> float:
    """Least seconds on ``workers`` devices: the longest chain of jobs, or an even share of the
    total."""
    return max(longest, total / workers)


def disk(facts: Facts, folder: str) -> float:
    """Bytes that a stage leaves: weights, responses (in its table and in the store's cache).
    Smaller files are not counted, nor links to weights that a run has kept."""
    artifact = facts.artifacts[folder]
    if artifact.verb in TRAINED:
        kept = len(artifact.cfg.get("execution", {}).get("keep_steps", ()))
        return MODEL_BYTES * parameters(facts, folder) * (1 + kept)
    if artifact.verb == "fetch":
        return FETCHED_BYTES * parameters(facts, folder)
    if artifact.verb in ("generate", "evaluate"):
        done = work(facts, folder)
        assert done is not None
        return 2 * TOKEN_BYTES * done.tokens
    return 0.0


def scratch(facts: Facts, folder: str) -> float:
    """Bytes of the checkpoints (two) of a run under way, removed when it ends."""
    trains = STAGES[facts.artifacts[folder].verb].trains
    return 2 * CHECKPOINT_BYTES * parameters(facts, folder) if trains else 0.0


def room(facts: Facts, widths: Mapping[str, int], workers: int) -> tuple[float, float]:
    """Bytes that jobs leave, and the most that checkpoints take besides while ``workers`` devices
    are at work; ``widths``: devices of each job, by folder."""
    stays = sum(disk(facts, folder) for folder in widths)
    running = [
        scratch(facts, folder) * (workers // min(width, workers))
        for folder, width in widths.items()
    ]
    return stays, max(running, default=0.0)
