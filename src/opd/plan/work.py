"""How long the jobs of a plan take: what they have to do (``opd.plan.cost``) put into the closed
forms of ``opd.plan.timing``."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from opd.plan import cost, memory, timing
from opd.plan.cost import Facts, Load
from opd.plan.timing import Device, Model
from opd.stages.registry import STAGES
from opd.training import batches, shares, terms

# Sequences that probes read at a time, and that transformers samples, where a config does not say.
MICRO_BATCH, BATCH = 8, 64

Seconds = dict[str, float]


class Work(NamedTuple):
    """``parameters`` of the main model, and ``parts``: seconds of all devices of a job by what they
    are spent on. The seconds are NaN where the size of models or data is not known."""

    parameters: float
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class Reading(NamedTuple):
    """Sequences that a device reads in a step: passes through the model that they are put into, and
    their positions, pairs of positions, and positions at which a token is predicted."""

    times: float
    positions: float
    squares: float
    predicted: float


def work(facts: Facts, folder: str, on: Device, processes: int | None = None) -> Work | None:
    """The work of a stage that runs a model, on so many devices of this kind (its processes, if not
    given); None for other stages."""
    artifact = facts.artifacts[folder]
    inputs, roles = artifact.named, cost.USES.get(artifact.stage, {})
    used = {kind: inputs[role] for kind, role in roles.items() if role in inputs}
    if not used:
        return None
    if artifact.stage == "alignment":
        # The student itself may be the teacher, with more in its prompt.
        name = f"teacher:{artifact.cfg['teacher']['name']}"
        used["teacher"] = inputs.get(name, inputs["student"])
    if artifact.cfg.get("logprobs"):  # what was sampled is read once more
        used["score"] = used["sample"]
    if {"scores", "server"} & artifact.cfg.keys():  # of a teacher that is not loaded
        del used["teacher"]
    if "terms" in artifact.cfg:  # as if each read all rows, whatever a term chooses
        loaded = terms.models(artifact.cfg["terms"])
        read = filter(None, dict.fromkeys(terms.readings(artifact.cfg["terms"])))
        names = [reading.model for reading in read if reading.model in loaded]
        used |= {f"teacher:{i}": inputs[name] for i, name in enumerate(names)}
    cfg = {**artifact.cfg, "processes": processes or artifact.cfg.get("processes", 1)}
    models = {kind: _model(facts, model) for kind, model in used.items()}
    size = next(iter(models.values())).parameters
    load = cost.load(facts, artifact, on.natural)
    sizes = sum(model.parameters for model in models.values())
    if math.isnan(sizes + load.sequences + load.written):
        return Work(size, {"all": math.nan})
    parts: Seconds = {}
    if load.sequences and STAGES[artifact.stage].trains:
        trained = cost.trained_by(facts, folder)
        parts = _trained(artifact.stage, cfg, load, models, trained, on)
    elif load.sequences:
        parts = _read(cfg, load, models, on)
    parts["start"] = on.start
    return Work(size, {part: cfg["processes"] * seconds for part, seconds in parts.items()})


def _model(facts: Facts, folder: str) -> Model:
    """What time depends on of a model; of one whose shape is not known its parameters alone."""
    shape = cost.shape(facts, folder)
    if shape is None:
        size = cost.parameters(facts, folder)
        return Model(size, size)
    body, head = shape.layers * shape.layer, shape.vocabulary * shape.hidden
    query = shape.layers * shape.query
    return Model(shape.parameters, body, head, shape.layers, query, shape.cached(1))


def _sampled(
    cfg: Mapping[str, Any],
    n: float,
    batch: float,
    load: Load,
    model: Model,
    on: Device,
    engines: int = 1,
) -> float:
    """Seconds until each of ``engines`` has sampled ``n`` responses, ``batch`` at a time unless
    vLLM has more in flight."""
    vllm = "vllm" in cfg or cfg.get("backend") == "vllm"
    # Weights that are trained stay float32, and vLLM has a copy of them.
    kind = cfg.get("precision") if vllm and "precision" in cfg else cfg.get("dtype")
    width = 2 if kind == "bfloat16" else 4
    lengths = (load.prompt, load.limit)
    if not vllm:
        return timing.sampled_in_batches(model, width, n, batch, *lengths, on)
    slots = float(memory.of_vllm(cfg).get("max_num_seqs") or on.sequences)
    if math.isinf(on.memory):  # a processor, where opd.models.vllm_engine says how many
        slots = min(slots, batch)
    else:
        room = memory.for_sequences(cfg, model.parameters, on.memory)
        slots = min(slots, timing.in_flight(room, width * model.cached, *lengths, on.natural))
    return timing.sampled_with_vllm(model, width, n, slots, *lengths, on, engines)


def _read(cfg: Mapping[str, Any], load: Load, models: Mapping[str, Model], on: Device) -> Seconds:
    """Seconds of a stage that samples and reads, which it does with little padding."""
    n = load.sequences / cfg["processes"]
    tokens = n * _length(load, on.natural)
    times = math.ceil(n / cfg.get("micro_batch", MICRO_BATCH))
    reading = Reading(times, tokens, n * _squared(load, on.natural), tokens - n * load.prompt)
    parts = {kind: _passes(model, reading, on) for kind, model in models.items()}
    if "sample" in models:
        batch = cfg.get("batch_size", BATCH)
        parts["sample"] = _sampled(cfg, n, batch, load, models["sample"], on)
    return parts


def _trained(
    stage: str,
    cfg: Mapping[str, Any],
    load: Load,
    models: Mapping[str, Model],
    trained: float,
    on: Device,
) -> Seconds:
    """Seconds of a run that trains so many parameters: of its steps, and of writing checkpoints and
    weights."""
    student, processes = models["update"], cfg["processes"]
    updates = cfg.get("updates_per_batch", 1)
    rollouts = updates * batches.sequences(stage, cfg)
    steps, n = load.sequences / rollouts, rollouts / processes
    if stage == "sft" and cfg.get("packing"):
        steps *= _length(load, on.natural) / load.most
    shards = processes if cost.sharded(cfg) else 1
    reading = _batches(stage, cfg, n, n / updates, load, on.natural, shards)
    once = _passes(student, reading, on)
    moments = timing.UPDATE_BYTES * trained / shards / on.bandwidth
    # Forward, and backward to inputs and to weights; those of an adapter are few.
    passes = 3 + bool(cfg.get("gradient_checkpointing")) - ("adapter" in cfg)
    step = {"update": passes * once + updates * moments}
    own = n * shares.own_share(cfg)
    if "sample" in models and own:
        step["sample"] = _sampled(cfg, own, own, load, student, on, processes)
    teachers = [model for kind, model in models.items() if kind.startswith("teacher")]
    if teachers:
        step["teacher"] = sum(_passes(teacher, reading, on) for teacher in teachers)
        heads = 2 * sum(model.head for model in (student, *teachers)) * reading.predicted
        step["metrics"] = heads / on.products / cfg.get("metrics_every", 1)
    # TRL's GRPOTrainer reads its rollouts once more where other weights may have sampled them.
    if stage == "grpo" and (updates > 1 or ("vllm" in cfg and cfg.get("importance_cap"))):
        step["score"] = once
    execution = cfg.get("execution", {})
    every, minutes = execution.get("checkpoint_every", steps), execution.get("checkpoint_minutes")
    writes = timing.saved(steps, every, minutes or math.inf, sum(step.values()))
    weights = cost.MODEL_BYTES * student.parameters * (1 + len(execution.get("keep_steps", ())))
    written = writes * cost.checkpoint_bytes(cfg) * trained + weights
    parts = {part: steps * seconds for part, seconds in step.items()}
    return {**parts, "write": written / on.disk}


def _batches(
    stage: str,
    cfg: Mapping[str, Any],
    n: float,
    update: float,
    load: Load,
    natural: float,
    lockstep: int,
) -> Reading:
    """What a device reads of its ``n`` sequences of a step, of which ``update`` are of one update.

    Micro-batches are padded to their longest, and devices that exchange shards in every layer
    (``lockstep``) wait for the longest of all. Packed sequences have no padding; a mask looks at
    all pairs of their row, and flash and flex attention at those of one sequence that are not of
    later tokens.
    """
    micro = min(cfg.get("micro_batch") or math.inf, update)
    if cfg.get("packing"):
        length = load.most if stage == "sft" else _length(load, natural)
        row = length if stage == "sft" else micro * length
    else:
        longest = timing.longest(max(1, round(micro * lockstep)), load.written, natural)
        row = length = min(load.prompt + longest, load.most)
    own = cfg.get("attention", "").startswith(("flash", "flex"))
    squares = n * (_squared(load, natural) / 2 if own else row * length)
    predicted = n * length if stage == "sft" else n * (length - load.prompt)
    return Reading(math.ceil(n / micro), n * length, squares, predicted)


def _length(load: Load, natural: float) -> float:
    """Mean tokens of a sequence that is read."""
    return min(load.prompt + timing.mean(load.written, natural), load.most)


def _squared(load: Load, natural: float) -> float:
    """Mean square of its tokens."""
    mean, square = timing.mean(load.written, natural), timing.mean_square(load.written, natural)
    return min(load.prompt**2 + 2 * load.prompt * mean + square, load.most**2)


def _passes(model: Model, reading: Reading, on: Device) -> float:
    """Seconds of a forward pass of all that is read."""
    products = timing.forward(model, reading.positions, reading.squares, reading.predicted)
    return reading.times * model.layers * on.launch + products / on.products
