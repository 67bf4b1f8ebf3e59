"""On-policy distillation: TRL's DistillationTrainer with our losses and measurements."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from opd.core.errors import UserError
from opd.losses.terms import States
from opd.losses.token import aggregate
from opd.models import pairing
from opd.models.checkpoints import load_model, load_tokenizer
from opd.models.pairing import head_of, save_trimmed
from opd.training import (
    adapter,
    common,
    launch,
    measure,
    micro_batches,
    objective,
    scored,
    servers,
    sources,
    terms,
)
from opd.training.objective import COUNTS, Term
from opd.training.padding import packed_hidden, require_boundaries, trimmed
from opd.training.positions import padded_hidden
from opd.training.prompts import load
from opd.training.record import Record, Value
from opd.training.teachers import ROWS, Teachers, load_models, on_device

# Of a batch: what each token of a sequence counts in the loss.
TOKEN_WEIGHTS = "token_weights"


class Trainer(common.OnPolicy, DistillationTrainer):
    """TRL's rollouts and optimiser; the loss a sum of terms (``opd.training.objective``) that is
    aggregated over a step; measurements from ``opd.losses.metrics`` on the same hidden states.
    ``models`` are those of the terms, by name; the student itself where a term reads it as it is
    (a live teacher), or as it started, without its adapter. ``tables``: see ``Teachers``."""

    _buffered_inputs: Any

    def __init__(
        self,
        sum_of: list[Term],
        cfg: dict[str, Any],
        models: dict[str, Any],
        tables: dict[str, Any],
        rollouts: sources.Sources,
        **kwargs: Any,
    ) -> None:
        self.sum_of, self.cfg, self.rollouts = sum_of, cfg, rollouts
        self.examples: list[dict[str, Any]] = []  # of the step that is rolled out
        self.update = cfg.get("teacher_update", "frozen")
        only = next(iter(models.values())) if len(models) == 1 else None
        self.reads_itself = only is kwargs["model"]
        super().__init__(teacher_model=None if self.reads_itself else only, **kwargs)
        if self.teacher_model is not None:
            # Under FSDP accelerate neither shards nor moves a model that is not trained.
            self.teacher_model.to(self.accelerator.device).eval()
            models = dict.fromkeys(models, self.teacher_model)
        readings = [term.reading for term in sum_of]
        self.teachers = Teachers(models, readings, self._of_model, self.accelerator, tables)
        self.bins = -(-self.max_completion_length // cfg["position_bin"])
        self.tallies: dict[str, Tensor] = {}
        self.measured: list[Value] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._buffered_inputs = None  # and with it what was kept of the last step's rollouts
        self.examples = inputs
        batch = super()._generate_and_score_completions(inputs)
        batch |= self.rollouts.of_batch(inputs, batch["completion_mask"])
        for prompt in (reading.prompt for reading in self.teachers.readings):
            if prompt in inputs[0]:
                encoded = self.processing_class.pad(
                    {"input_ids": [example[prompt] for example in inputs]}, return_tensors="pt"
                ).to(batch["prompt_ids"].device)
                batch[f"{prompt}_ids"] = encoded["input_ids"]
                batch[f"{prompt}_mask"] = encoded["attention_mask"]
        if self.cfg["aggregation"] == "micro_batch_mean":
            batch[TOKEN_WEIGHTS] = self._token_weights(batch)
        if ROWS in inputs[0]:
            device, group = batch["prompt_ids"].device, self.cfg["rollouts_per_prompt"]
            batch[ROWS] = torch.tensor([example[ROWS] for example in inputs], device=device)
            rollouts = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
            texts = self.processing_class.batch_decode(
                [ids[mask != 0] for ids, mask in rollouts], skip_special_tokens=True
            )
            objective.grade(self.sum_of, inputs, batch, texts, self.accelerator, group)
        return batch | self.teachers.ask_ahead(batch)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *others: Any, **named: Any
    ) -> list[list[int]]:
        """The student's own responses, and beside them those of other sources."""
        sample = super()._generate_single_turn
        return self.rollouts.filled(
            self.examples, prompt_ids, lambda own: sample(own, *others, **named)
        )

    def _token_weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What ``aggregate`` takes as the weights of this process's sequences of a step, [B]."""
        masks = batch["prompt_mask"], batch["completion_mask"]
        own = torch.stack([mask.sum(1) for mask in masks], 1)
        # In the order of the prompts: each process has the next part of them.
        prompts, responses = self.accelerator.gather(own).T.tolist()
        weights = micro_batches.token_weights(
            prompts,
            responses,
            self.cfg["max_token_len_per_gpu"],
            self.cfg["data_parallel_size"],
        )
        start = self.accelerator.process_index * len(own)
        # Processes are averaged, and here the sum over all of them is meant.
        scaled = torch.tensor(weights, device=own.device) * self.accelerator.num_processes
        return scaled[start : start + len(own)]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._prepare_inputs(generation_batch)
        keeps_states = terms.keeps_states([term.settings for term in self.sum_of])
        with self.accelerator.autocast():
            if ROWS in batch and COUNTS not in batch:
                # The first micro-batch of a step of several terms.
                self._buffered_inputs = batches = [trimmed(part) for part in self._buffered_inputs]
                if keeps_states:
                    self.teachers.read_ahead(batches)
                k = self.cfg["metrics_k"]
                objective.count(
                    self.sum_of, batches, self.teachers, self._of_student, self.accelerator, k
                )
                batch = batches[self._step % self.args.gradient_accumulation_steps]
            if self.reads_itself and not keeps_states:
                # Before the pass that it is trained in, which FSDP lets no other pass be part of.
                batch = trimmed(batch)
                self.teachers.read_ahead([batch])
        return batch

    def _of_student(self, batch: dict[str, Any]) -> States:
        """What the student makes of a micro-batch before it is trained on it."""
        student = self.accelerator.unwrap_model(self.model)
        return States(self._read(student, batch, "prompt"), head_of(student))

    def _of_model(self, model: Any, batch: dict[str, Any], prompt: str) -> Tensor:
        """``_hidden`` of a model of the terms."""
        student = self.accelerator.unwrap_model(self.model)
        as_it_started = model is student and self.update != "live"
        with student.disable_adapter() if as_it_started else nullcontext():
            return self._read(model, batch, prompt)

    def _read(self, model: Any, batch: dict[str, Any], prompt: str) -> Tensor:
        """``_hidden`` without dropout of a model that accelerate may have wrapped."""
        own = self.accelerator.unwrap_model(model)
        if own is self.accelerator.unwrap_model(self.model):
            model = self.model_wrapped
        training = own.training
        own.eval()
        hidden: Tensor = self._forward_redirection(model, own, self._hidden, own, batch, prompt)
        own.train(training)
        return hidden

    def _hidden(self, model: Any, inputs: dict[str, Tensor], prompt: str) -> Tensor:
        """Last hidden states [B, T, H] that predict the T response tokens after a prompt."""
        ids, mask = (
            torch.cat([inputs[f"{prompt}_{kind}"], inputs[f"completion_{kind}"]], 1)
            for kind in ("ids", "mask")
        )
        responses = inputs["completion_ids"].shape[1]
        hidden = packed_hidden if self.cfg.get("packing") else padded_hidden
        return hidden(adapter.beneath(model).base_model, ids, mask)[:, -responses - 1 : -1]

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Tensor], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = trimmed(inputs)
        # TRL calls the backbone past the forward that accelerate has put autocast into.
        with self.accelerator.autocast():
            read = {r: self.teachers.states(inputs, r) for r in self.teachers.readings}
            hidden = self._hidden(unwrapped_student, inputs, "prompt")
            student = States(hidden, head_of(unwrapped_student))
            teachers = [read[t.reading] if t.reading else student for t in self.sum_of]
            losses = objective.token_losses(self.sum_of, inputs, student, teachers)
            importance = sources.weights(inputs, student, self.temperature)
            if self.state.global_step % self.cfg["metrics_every"] == 0:
                read_off = student._replace(hidden=hidden.detach())
                given = (read_off, teachers, self.eos_token_ids, self.cfg, self.bins)
                measure.add(self.tallies, self.sum_of, inputs, *given)
        if COUNTS in inputs:
            self._add("terms", objective.tally(self.sum_of, inputs, losses))
        loss = objective.summed(inputs, losses, self._weights(self.state.global_step))
        if sources.SOURCE in inputs:
            self._add("sources", sources.tally(len(self.rollouts.clips), inputs, importance))
            loss = loss * importance
        mask, how = inputs["completion_mask"], self.cfg["aggregation"]
        parts = self.args.gradient_accumulation_steps
        loss = aggregate(loss, mask, how, num_items_in_batch, parts, inputs.get(TOKEN_WEIGHTS))
        return loss, torch.zeros((), device=loss.device), mask.sum()

    def _weights(self, step: int) -> list[float]:
        """The weight of each term at a step."""
        steps = self.args.max_steps
        return [terms.weight_at(term.settings["weight"], step, steps) for term in self.sum_of]

    def _add(self, name: str, tally: Tensor) -> None:
        self.tallies[name] = self.tallies.get(name, 0) + tally

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.measured = self._measurements()
        logs |= {name: value for name, position, value in self.measured if position is None}
        # TRL's own entropy: ours is among the measurements.
        self._metrics["train"].pop("entropy", None)
        super().log(logs, start_time)

    def _measurements(self) -> list[Value]:
        """The measurements since the last call, over all processes."""
        tallies = {n: self.accelerator.reduce(t, "sum") for n, t in self.tallies.items()}
        self.tallies.clear()
        values = measure.means(tallies, self.cfg["position_bin"])
        if "terms" in tallies:
            weights = self._weights(self.state.global_step - 1)
            values += objective.means(self.sum_of, tallies["terms"], weights)
        if "sources" in tallies:
            values += sources.means(tallies["sources"], self.rollouts.clips)
        return values + measure.gaps(values)

    @torch.no_grad()
    def move_teacher(self) -> None:
        """Let an EMA teacher follow the student by one step."""
        student = self.accelerator.unwrap_model(self.model)
        own = adapter.merged(student, dict(student.named_parameters()))
        for average, (_, weights) in zip(self.teacher_model.parameters(), own, strict=True):
            average.lerp_(weights.to(average.dtype), 1 - self.cfg["ema_decay"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.update == "ema":
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            state = self.accelerator.get_state_dict(self.teacher_model)
            if self.accelerator.is_main_process:
                torch.save(state, folder / "teacher.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.update == "ema":
            state = torch.load(
                Path(resume_from_checkpoint, "teacher.pt"), weights_only=True, map_location="cpu"
            )
            self.teacher_model.load_state_dict(state)


class Follow(TrainerCallback):
    """Calls ``Trainer.move_teacher`` after every update of the student."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.move_teacher()


def compared_pairs(
    cfg: dict[str, Any], sum_of: Sequence[Term], inputs: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """``pairing.compare`` of the student and each model of the terms, by name, with notes printed.
    Raises ``UserError`` where a pair does not fit, in a sum of several with the term."""
    pairs: dict[str, dict[str, Any]] = {}
    for i, term in enumerate(sum_of):
        settings = {**cfg, **term.settings}
        if (name := terms.model_of(term.settings)) is None:
            continue
        try:
            pair = pairing.compare(settings, inputs["student"], inputs[name])
            for objection in pairing.objections(settings, pair):
                raise objection
            pairing.require_k(term.k, pair["vocabulary"], "loss.k")
        except UserError as error:
            if "terms" not in cfg:
                raise
            raise UserError(error.what, f"terms.{i}: {error.where}", error.remedy) from None
        for note in pair["notes"] if name not in pairs else ():
            print(f"note: {note}", file=sys.stderr)
        pairs[name] = pair
    return pairs


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``distill``: inputs student, prompts, teacher, or the models that terms name, the
    generations that ``rollouts`` name, and scores; of a teacher with scores, or behind a server, no
    weights are read.

    cfg: the settings of ``opd.recipes.models.Distill``; seed, threads, chat_template_kwargs,
    teacher_chat_template_kwargs, precision (``bfloat16``: compute only, weights stay float32),
    gradient_checkpointing. With information, a list of contexts (``opd.data.privileged.contexts``),
    the teacher reads the student's response after what it is told, not after the student's prompt.
    With several contexts the rollouts of a prompt take them in turn, so that the mean over a step
    is one over contexts: the reverse KL then has their normalised geometric mean as its optimum
    (Many Faces, Eqs. 10 and 11).

    With ``rollouts`` (``opd.training.shares``) a step draws some of its rollouts, or all, from
    generations: the student learns from them as from its own.

    One optimiser update per step on that step's rollouts; prompts in order, a last partial batch
    dropped, epochs repeated as steps ask for (Rethinking OPD, Table 2 and section 3.3), or shuffled
    (``load``). Raises ``UserError`` where the pair does not fit (``pairing.compare``,
    ``objections``), a prompt is too long, a generation is not of the run's prompts or of the
    student's tokens (``sources.Sources``), or the loss is no number.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    common.prepare(cfg)
    sum_of = objective.made(cfg)
    tokenizer = load_tokenizer(inputs["student"])
    pairs = compared_pairs(cfg, sum_of, inputs)
    vocabulary = min(pair["vocabulary"] for pair in pairs.values())
    pairing.require_k(cfg["metrics_k"], vocabulary, "metrics_k")
    ends = sorted({i for pair in pairs.values() for i in pairing.end_ids(cfg, pair)})
    beyond = sorted({i for pair in pairs.values() for i in pair["never_compared"]})
    rollouts = sources.Sources(cfg, inputs, tokenizer, vocabulary, ends)
    examples = load(cfg, inputs, tokenizer, rollouts)
    served = servers.connected(cfg, inputs, sum_of, pairs, vocabulary)
    student = load_model(inputs["student"], attention=cfg.get("attention"))
    others = load_models(cfg, inputs, pairs, student, tokenizer)
    arguments = common.rollout_arguments(cfg, "distill", scratch)
    if "end_tokens" in cfg:
        # The trained model ends its responses as it was trained to.
        student.generation_config.eos_token_id = ends
        if "vllm" in cfg:
            arguments["generation_kwargs"] = {"stop_token_ids": ends}
    args = DistillationConfig(**arguments)
    rows = next(iter(pairs.values()))["embedding_rows"]["student"]
    if "vllm" in cfg and vocabulary < rows:
        if args.vllm_mode == "server":
            raise UserError(
                f"a server of vLLM has {rows} rows in the student's head, of which {vocabulary} "
                "are trained",
                "training.vllm.mode",
                "use colocate",
            )
        student.name_or_path = str(scratch / "trimmed")  # what vLLM loads
        with args.main_process_first(desc="the student that vLLM loads"):
            if args.process_index == 0:
                save_trimmed(inputs["student"], vocabulary, scratch / "trimmed")
    student = adapter.adapted(student, cfg)
    settings = terms.terms_of(cfg)
    models = {name: others.get(name, student) for name in terms.models(settings)}
    tables = {name: scored.reader(inputs[name], vocabulary) for name in terms.scores(settings)}
    tables |= {name: servers.asking(teacher, vocabulary) for name, teacher in served.items()}
    trainer = Trainer(
        sum_of,
        cfg,
        models,
        tables,
        rollouts,
        model=student,
        args=args,
        train_dataset=examples,
        processing_class=tokenizer,
    )
    if cfg.get("packing"):
        with trainer.accelerator.autocast():
            for model in (student, *others.values()):
                with on_device(model, trainer.accelerator.device):
                    require_boundaries(model)
    if trainer.update == "ema":
        if trainer.is_fsdp_enabled:
            raise UserError("an EMA teacher is not sharded", "teacher_update", "train it with ddp")
        trainer.add_callback(Follow(trainer))
    record = Record("distill", {}, lambda: trainer.measured, cfg.get("guard"))
    with servers.failures():
        numbers = common.train(trainer, record, cfg, inputs["student"], out, scratch)
    return numbers | ({"never_compared": beyond} if beyond else {}) | servers.reported(served)
