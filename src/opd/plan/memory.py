"""Memory of one GPU (or of a processor) that training and sampling need, in bytes, term by term.

What a step allocates was read from torch's own tracker at the real sizes of the papers' models
(tests/bench/bench_memory.py); docs/cost.md says how near these sums come.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.plan import cost
from opd.plan.cost import Facts
from opd.plan.shape import Shape
from opd.stages.registry import STAGES
from opd.training import batches, shares, terms

Terms = dict[str, float]

# opd.losses.head.CHUNK_ELEMENTS: logits of one chunk of positions.
CHUNK_ELEMENTS = 384 * 151_936
# Tensors of a chunk's logits at once: when metrics are taken (logits, log-probabilities and
# probabilities of both models, two more on the way), and in the loss's backward pass.
MEASURED_CHUNKS, LOSS_CHUNKS = 8, 3
# Assumed of a GPU: CUDA's context and libraries; what a sleeping vLLM keeps besides, and what one
# that is awake takes for itself beside weights and cache.
CONTEXT, ASLEEP, ENGINE = 2e9, 2e9, 2e9
# Of a GPU's memory, what vLLM takes where nothing else is said.
UTILISATION = 0.9


def training(
    stage: str, cfg: Mapping[str, Any], student: Shape, teachers: Mapping[str, Shape], memory: float
) -> Terms:
    """The terms at the moment of a training step when they add up to the most, on a GPU of
    ``memory`` bytes. See ``phases``."""
    return max(phases(stage, cfg, student, teachers, memory).values(), key=total)


def total(terms: Terms) -> float:
    return sum(terms.values())


def phases(
    stage: str, cfg: Mapping[str, Any], student: Shape, teachers: Mapping[str, Shape], memory: float
) -> dict[str, Terms]:
    """Terms of each phase of a step of ``sft``, ``grpo`` or ``distill``, on each of the processes.
    ``teachers`` are the models beside the student, by the names of the stage's inputs; a term whose
    model is not among them reads the student itself.

    Always there:
    - weights, moments: 4 and 8 bytes a parameter (float32; Adam), sharded under FSDP; with an
      adapter, of it alone there are moments, gradients and an update;
    - teacher: 2 bytes a parameter, whole on each process, 4 where it is not frozen or nothing is
      computed in bfloat16. Several take turns, the largest while the ``teacher`` reads, else only
      their heads;
    - states: of several teachers, or where token weights look at a whole step: last hidden states
      of a step's rollouts, 2 or 4 bytes an element, from when the teachers have read them;
    - vLLM: its share of the GPU where it samples in the same process, but for what it gives back
      while it sleeps;
    - context: of CUDA.
    Of a micro-batch whose sequences are all as long as they may be:
    - gradients: 4 bytes a parameter, sharded under FSDP between micro-batches, too;
    - copies: what is computed with in bfloat16. One process casts all layers for the forward pass
      (of frozen ones a checkpointed pass keeps no copy), FSDP gathers embeddings and head, and a
      layer with the next one;
    - checkpoints: what goes from layer to layer, or without gradient_checkpointing all that layers
      keep;
    - layer: what one layer keeps (``Shape.saved``) that is computed again, and three gradients of
      its MLP;
    - head: the fused loss. Chunks of logits in float32; in the backward pass also the gradients of
      the head's weights, if it is trained, in float32, and a copy of them. In SFT the logits of all
      tokens;
    - mask: of attention, a byte for each pair of tokens of a sequence (of a row, if packed), and a
      number where it is used; none with flash or flex attention, and ``eager``, which keeps weights
      of every pair, is not reckoned;
    - responses: last hidden states of both models.
    And: cache, of rollouts that transformers samples (all of a step at once); update, the square
    roots of Adam's second moments.
    """
    sharded = cost.sharded(cfg)
    narrow = cfg.get("precision") == "bfloat16"
    shards = cfg["processes"] if sharded else 1
    width = 2 if narrow else 4
    # Between layers numbers are float32 unless FSDP has made the embeddings bfloat16.
    stream = 2 if narrow and sharded else 4
    trained = cost.trained(cfg, student) / shards
    n = student.parameters / shards
    micro, times = batches.dealt(batches.sequences(stage, cfg), cfg)
    new = cfg.get("max_new_tokens", 0)
    length = cfg["max_tokens"] if stage == "sft" else cfg["max_prompt_tokens"] + new
    tokens, positions = micro * length, micro * new

    models = terms.models(terms.terms_of(cfg)) if stage == "distill" else []
    read = {name: teachers.get(name, student) for name in models}
    held = 4 if cfg.get("teacher_update") == "ema" else width
    always = {"weights": 4 * n, "moments": 8 * trained, "context": CONTEXT}
    largest = max((shape.parameters for shape in teachers.values()), default=0)
    taking_turns = sum(shape.vocabulary * shape.hidden for shape in teachers.values())
    if teachers:
        always["teacher"] = held * (largest if len(read) == 1 else taking_turns)
    states = {"states": width * times * positions * _kept(cfg, read)} if read else {}
    asleep, awake = _vllm(cfg, student, memory)
    always |= asleep
    rollouts = {**always, **awake}
    if stage != "sft" and not awake:
        # Its keys are float32 where weights are; a step's own rollouts are sampled together.
        sampled = micro * times * shares.own_share(cfg)
        rollouts["cache"] = sampled * length * student.cached(4)

    body = student.layers * student.layer
    gathered = width * (student.embeddings + 2 * student.layer) if sharded else 0
    cast = width * body if narrow and not sharded else gathered
    # These take sequences of different length by themselves, and keep no repeated keys and values.
    own = cfg.get("attention", "").startswith(("flash", "flex"))
    squares = 0 if own else tokens**2 if cfg.get("packing") else micro * length**2
    masked = {"mask": squares * (1 + width)}
    saved = tokens * student.saved(narrow, stream, not own)
    checkpointed = cfg.get("gradient_checkpointing", False)
    kept = tokens * stream * student.hidden if checkpointed else saved + squares * width
    copies = gathered if checkpointed else cast  # of the layers only as long as these keep them
    begun = {**always, "gradients": 4 * trained, **states}
    both = student.hidden + sum(shape.hidden for shape in read.values())
    held_back = {
        "checkpoints": student.layers * kept,
        **masked,
        "responses": 2 * width * positions * both,
    }
    whole = "adapter" not in cfg
    forward, backward, end = _head(stage, student, tokens, positions, narrow, whole)
    again = 3 * width * tokens * student.intermediate + (saved if checkpointed else 0)
    steps = {
        "rollouts": rollouts,
        "forward": {**begun, "copies": cast if whole else copies, **held_back, "head": forward},
        "loss": {**begun, "copies": copies, **held_back, "head": backward},
        "layer": {**begun, "copies": copies, **held_back, "layer": again, "head": end},
        "update": {**begun, "update": 4 * trained},
    }
    if whole:
        embeddings = {"copies": gathered, "head": end + 4 * student.embeddings}
        steps["embeddings"] = {**begun, **embeddings}
    if read:
        # Its layers keep nothing: an MLP's three tensors and a few of its width.
        one = max(4 * shape.intermediate + 8 * shape.hidden for shape in read.values())
        layer = {"layer": tokens * width * one}
        steps["teacher"] = {**begun, "copies": gathered, **masked, **layer}
        if teachers and len(read) > 1:
            steps["teacher"]["teacher"] += held * largest
    return steps


def _kept(cfg: Mapping[str, Any], read: Mapping[str, Shape]) -> float:
    """Elements of the states of a token that are kept for a step, where they are: each model's for
    each thing that it is told. A term that chooses among rows counts as if it had all of them."""
    sum_of = terms.terms_of(cfg)
    if not terms.keeps_states(sum_of):
        return 0
    readings = {reading for reading in terms.readings(sum_of) if reading}
    return sum(read[reading.model].hidden for reading in readings if reading.model in read)


def _head(
    stage: str, student: Shape, tokens: int, positions: int, narrow: bool, trained: bool
) -> tuple[float, float, float]:
    """Bytes of the head when the loss is computed, in its backward pass, and after that."""
    elements = student.vocabulary * student.hidden
    gradient = 4 * elements * trained
    if stage == "sft":  # logits as they are and in float32, and their gradients
        logits = 12 * tokens * student.vocabulary
        return logits, logits + gradient, gradient
    chunk = 4 * min(positions * student.vocabulary, CHUNK_ELEMENTS)
    copy = 2 * elements if narrow else 0
    backward = gradient + copy + LOSS_CHUNKS * chunk + 4 * positions * student.hidden
    return copy + MEASURED_CHUNKS * chunk, backward, gradient


def of_vllm(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of vLLM beside training, in TRL's names."""
    return {**cfg.get("vllm", {}), **cfg.get("execution", {}).get("vllm", {})}


def for_sequences(cfg: Mapping[str, Any], parameters: float, memory: float) -> float:
    """Bytes that vLLM has for keys and values on a GPU of ``memory`` bytes: its share without
    weights in bfloat16 and what the engine takes."""
    share = of_vllm(cfg).get("gpu_memory_utilization", UTILISATION)
    return float(share * memory - ENGINE - 2 * parameters)


def _vllm(cfg: Mapping[str, Any], student: Shape, memory: float) -> tuple[Terms, Terms]:
    """What vLLM takes beside training while nothing is sampled, and then: its share of the GPU, or
    what it needs at least, if that is more."""
    settings = of_vllm(cfg)
    if "vllm" not in cfg or settings.get("mode", "colocate") != "colocate":
        return {}, {}
    least = total(sampling({**cfg, "backend": "vllm", "dtype": "bfloat16"}, student)) - CONTEXT
    share = settings.get("gpu_memory_utilization", UTILISATION) * memory
    share = least if math.isinf(memory) else max(share, least)
    return {"vLLM": ASLEEP if settings.get("enable_sleep_mode") else share}, {"vLLM": share}


def sampling(cfg: Mapping[str, Any], model: Shape) -> Terms:
    """What a stage that samples with vLLM needs at least: weights, the keys and values of one
    sequence as long as it may be (with more of them it is faster), and what the engine takes; with
    transformers the keys and values of all of a batch."""
    narrow = cfg.get("dtype") == "bfloat16"
    width = 2 if narrow else 4
    length = cfg.get("max_prompt_tokens", 0) + (cfg.get("protocol") or cfg).get("max_new_tokens", 0)
    sequences = 1 if cfg.get("backend") == "vllm" else cfg.get("batch_size", 1)
    return {
        "weights": width * model.parameters,
        "cache": sequences * length * model.cached(width),
        "context": CONTEXT,
        "engine": ENGINE if cfg.get("backend") == "vllm" else 0,
    }


class Job(NamedTuple):
    """What a job needs of one GPU: terms in bytes, and settings with which it would fit, if those
    that it has are too much (none where no setting is enough)."""

    terms: Terms
    instead: list[str]

    @property
    def bytes(self) -> float:
        return sum(self.terms.values())


def of(facts: Facts, folder: str, gpus: int, memory: float) -> Job | None:
    """What a job that trains or samples needs where there are ``gpus`` of ``memory`` bytes; None
    for other jobs, and where the shape of a model is not known. Raises ``UserError`` for a step
    that cannot be dealt out to so many GPUs."""
    artifact = facts.artifacts[folder]
    stage, cfg, inputs = artifact.stage, artifact.cfg, artifact.named
    trains = STAGES[stage].trains
    if not (trains or STAGES[stage].samples):
        return None
    main = "student" if trains else cost.USES.get(stage, {}).get("sample", "")
    others = terms.models(terms.terms_of(cfg)) if stage == "distill" else []
    shapes = {name: cost.shape(facts, inputs[name]) for name in (main, *others) if name in inputs}
    known = {name: shape for name, shape in shapes.items() if shape}
    if main not in known or len(known) < len(shapes):
        return None
    if not trains:
        return Job(sampling(cfg, known[main]), [])
    itself = terms.student_serves(cfg)
    teachers = {n: known[n] for n in others if not (itself and inputs[n] == inputs["student"])}

    def taken(changed: Mapping[str, Any]) -> Terms:
        return training(stage, {**cfg, **changed}, known[main], teachers, memory)

    here = {"processes": min(cfg.get("processes", 1), gpus)}
    needed = taken(here)
    if total(needed) <= memory:
        return Job(needed, [])
    micro, _ = batches.dealt(batches.sequences(stage, cfg), {**cfg, **here})
    return Job(needed, _instead({**cfg, "micro_batch": micro}, here, taken, memory))


def _instead(
    cfg: Mapping[str, Any],
    changed: Mapping[str, Any],
    taken: Callable[[Mapping[str, Any]], Terms],
    memory: float,
) -> list[str]:
    """The first settings with which a run fits, in the order of what they cost: those that help,
    one on top of the other, until it does."""
    execution, helpful = cfg.get("execution", {}), dict[str, str]()
    vllm = execution.get("vllm", {})
    changes: list[tuple[str, dict[str, Any]]] = [
        ("gradient_checkpointing: true", {"gradient_checkpointing": True})
    ]
    micro = cfg["micro_batch"]
    while micro % 2 == 0:
        micro //= 2
        changes.append((f"micro_batch: {micro}", {"micro_batch": micro}))
    for value in (0.3, 0.2, 0.1) if "vllm" in cfg else ():
        vllm = {**vllm, "enable_sleep_mode": True, "gpu_memory_utilization": value}
        setting = f"vllm.gpu_memory_utilization: {value} and vllm.enable_sleep_mode: true"
        changes.append((setting, {"execution": {**execution, "vllm": vllm}}))
    for processes in (2, 4, 8, 16):
        sharded = {**execution, "vllm": vllm, "accelerate": "config/accelerate/fsdp2.yaml"}
        setting = f"processes: {processes} and accelerate: {sharded['accelerate']}"
        changes.append((setting, {"processes": processes, "execution": sharded}))
    least = total(taken(changed))
    for setting, more in changes:
        try:
            size = total(taken({**changed, **more}))
        except UserError:  # a step cannot be dealt out to so many
            continue
        if size < least:
            changed, least = {**changed, **more}, size
            helpful[setting.partition(":")[0]] = setting
        if least <= memory:
            return list(helpful.values())
    return []
