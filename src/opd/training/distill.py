"""On-policy distillation: TRL's DistillationTrainer with our losses and measurements."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from opd.core.errors import UserError
from opd.data import privileged
from opd.losses import metrics
from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import LossSpec, loss_spec
from opd.losses.token import aggregate
from opd.models import pairing
from opd.models.checkpoints import load_model, load_tokenizer, read_config, require_room
from opd.models.pairing import head_of, save_trimmed, teacher_kwargs, trim_vocabularies
from opd.training import common, launch, micro_batches, order
from opd.training.padding import packed_hidden, require_boundaries, trimmed
from opd.training.record import Record, Value

# Column of the token ids that the teacher reads in place of the student's prompt.
TEACHER_IDS = "teacher_ids"
# Of a batch: what each token of a sequence counts in the loss.
TOKEN_WEIGHTS = "token_weights"


class Trainer(DistillationTrainer):
    """TRL's rollouts and optimiser; the loss from ``opd.losses.fused``, aggregated over a step;
    measurements from ``opd.losses.metrics`` on the same hidden states."""

    def __init__(self, spec: LossSpec, cfg: dict[str, Any], teacher: Any, **kwargs: Any) -> None:
        self.spec, self.cfg = spec, cfg
        self.update = cfg.get("teacher_update", "frozen")
        super().__init__(teacher_model=None if self.update == "live" else teacher, **kwargs)
        if self.teacher_model is not None:
            # Under FSDP accelerate neither shards nor moves a model that is not trained.
            self.teacher_model.to(self.accelerator.device).eval()
        self.bins = -(-self.max_completion_length // cfg["position_bin"])
        self.tallies: dict[str, Tensor] = {}
        self.measured: list[Value] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if TEACHER_IDS in inputs[0]:
            encoded = self.processing_class.pad(
                {"input_ids": [example[TEACHER_IDS] for example in inputs]}, return_tensors="pt"
            ).to(batch["prompt_ids"].device)
            batch["teacher_prompt_ids"] = encoded["input_ids"]
            batch["teacher_prompt_mask"] = encoded["attention_mask"]
        if self.cfg["aggregation"] == "micro_batch_mean":
            batch[TOKEN_WEIGHTS] = self._token_weights(batch)
        return batch

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

    def _hidden(self, model: Any, inputs: dict[str, Tensor], prompt: str) -> Tensor:
        """Last hidden states [B, T, H] that predict the T response tokens after a prompt."""
        ids, mask = (
            torch.cat([inputs[f"{prompt}_{kind}"], inputs[f"completion_{kind}"]], 1)
            for kind in ("ids", "mask")
        )
        responses = inputs["completion_ids"].shape[1]
        if self.cfg.get("packing"):
            return packed_hidden(model.base_model, ids, mask)[:, -responses - 1 : -1]
        return self._get_last_hidden_state(model, ids, mask, responses)

    @torch.no_grad()
    def _teacher(self, student: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Head]:
        """The teacher's last hidden states [B, T, H] on the student's responses, and its head."""
        prompt = "teacher_prompt" if "teacher_prompt_ids" in inputs else "prompt"
        if self.teacher_model is None:
            student.eval()
            hidden = self._hidden(student, inputs, prompt)
            student.train()
            return hidden, head_of(student)
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        hidden = self._forward_redirection(
            self.teacher_model, teacher, self._hidden, teacher, inputs, prompt
        )
        return hidden, head_of(teacher)

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Tensor], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = trimmed(inputs)
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        # TRL calls the backbone past the forward that accelerate has put autocast into.
        with self.accelerator.autocast():
            teacher_hidden, teacher_head = self._teacher(unwrapped_student, inputs)
            hidden = self._hidden(unwrapped_student, inputs, "prompt")
            head = head_of(unwrapped_student)
            loss = fused_token_loss(
                hidden, head, teacher_hidden, teacher_head, ids, mask, self.spec, self.temperature
            )
            if self.state.global_step % self.cfg["metrics_every"] == 0:
                self._measure(hidden.detach(), head, teacher_hidden, teacher_head, ids, mask)
        parts = self.args.gradient_accumulation_steps
        how, weights = self.cfg["aggregation"], inputs.get(TOKEN_WEIGHTS)
        loss = aggregate(loss, mask, how, num_items_in_batch, parts, weights)
        return loss, torch.zeros((), device=loss.device), mask.sum()

    @torch.no_grad()
    def _measure(
        self, h_p: Tensor, head_p: Head, h_q: Tensor, head_q: Head, ids: Tensor, mask: Tensor
    ) -> None:
        """Add the measurements of a micro-batch to the tallies: of states, from hidden states
        [B, T, H] in chunks of positions, and of its B responses."""
        kept = mask != 0
        repeated = metrics.repeats(ids, mask)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[kept]
        # Also where nothing counts here: all processes add up the same tallies.
        none = torch.zeros(2, len(metrics.STATE), self.bins, dtype=torch.float64, device=ids.device)
        tally = self.tallies.setdefault("state", none)
        for part, sums in metrics.in_parts(
            (h_p[kept], h_q[kept]),
            (head_p, head_q),
            (self.temperature, self.spec.teacher_temperature),
            ids[kept],
            repeated[kept],
            self.cfg["metrics_k"],
        ):
            tally += metrics.binned(sums, positions[part], self.cfg["position_bin"], self.bins)
        last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        eos = torch.tensor(self.eos_token_ids, device=ids.device)
        sums = metrics.response_metrics(mask, last, eos, repeated)
        tally = metrics.binned(sums, torch.zeros_like(last), 1, 1)
        self.tallies["response"] = self.tallies.get("response", 0) + tally

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.measured = self._measurements()
        logs |= {name: value for name, position, value in self.measured if position is None}
        # TRL's own entropy: ours is among the measurements.
        self._metrics["train"].pop("entropy", None)
        super().log(logs, start_time)

    def _measurements(self) -> list[Value]:
        """The measurements since the last call, over all processes."""
        values: list[Value] = []
        for kind, names in (("state", metrics.STATE), ("response", metrics.RESPONSE)):
            if kind in self.tallies:
                tally = self.accelerator.reduce(self.tallies.pop(kind), "sum")
                values += metrics.means(names, tally, self.cfg["position_bin"])
        means = {name: value for name, position, value in values if position is None}
        if "entropy_student_nats" in means:
            gap = metrics.entropy_gap_of_means_nats(
                means["entropy_student_nats"], means["entropy_teacher_nats"]
            )
            values.append(("entropy_gap_of_means_nats", None, gap))
        return values

    @torch.no_grad()
    def move_teacher(self) -> None:
        """Let an EMA teacher follow the student by one step."""
        student = self.accelerator.unwrap_model(self.model)
        pairs = zip(self.teacher_model.parameters(), student.parameters(), strict=True)
        for average, weights in pairs:
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


def teacher_prompts(
    cfg: dict[str, Any], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> list[list[int]] | None:
    """Token ids of what the teacher is asked, rollouts_per_prompt of each row with its contexts in
    turn; None where that is what the student is asked.

    Raises ``UserError`` as ``opd.data.privileged.token_ids`` does, and where the rollouts of a
    prompt are no multiple of its contexts, since all contexts are to be used equally often.
    """
    contexts, kwargs = cfg.get("information"), teacher_kwargs(cfg)
    if not contexts and kwargs == (cfg.get("chat_template_kwargs") or {}):
        return None
    contexts = contexts or [privileged.CONTEXTS["none"]]
    each, remainder = divmod(cfg["rollouts_per_prompt"], len(contexts))
    if remainder:
        raise UserError(
            f"{len(contexts)} contexts for {cfg['rollouts_per_prompt']} rollouts of a prompt",
            "information",
            "make rollouts_per_prompt a multiple of them",
        )
    limit = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    by_context = privileged.token_ids(contexts, rows, tokenizer, kwargs, limit)
    return [ids[row] for row in range(len(rows)) for _ in range(each) for ids in by_context]


def load(cfg: dict[str, Any], inputs: Mapping[str, Path], tokenizer: Any) -> Dataset:
    """The prompts as they are rolled out, each as often as it is, with what the teacher is asked
    where that differs: those of an epoch, in order and without a last partial batch; or, with
    ``shuffle``, those of the whole run (``opd.training.order.shuffled``)."""
    readers = [inputs["student"], inputs["teacher"]]
    chats, rows = common.load_prompts(cfg, inputs["prompts"], tokenizer, readers)
    taken: Sequence[int] = range(len(rows) - len(rows) % cfg["prompts_per_step"])
    if cfg.get("shuffle"):
        taken = order.shuffled(len(rows), cfg["steps"] * cfg["prompts_per_step"], cfg["seed"])
    columns: dict[str, list[Any]] = {
        "prompt": [chats[i] for i in taken for _ in range(cfg["rollouts_per_prompt"])]
    }
    teacher_ids = teacher_prompts(cfg, [rows[i] for i in taken], tokenizer)
    if teacher_ids is not None:
        longest = max(map(len, teacher_ids)) + cfg["max_new_tokens"]
        require_room(read_config(inputs["teacher"]), longest, "max_new_tokens")
        columns[TEACHER_IDS] = teacher_ids
    return Dataset.from_dict(columns)


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``distill``: inputs student, teacher and prompts.

    cfg: the settings of ``opd.recipes.models.Distill``; seed, threads, chat_template_kwargs,
    teacher_chat_template_kwargs, precision (``bfloat16``: compute only, weights stay float32),
    gradient_checkpointing. With information, a list of contexts (``opd.data.privileged.contexts``),
    the teacher reads the student's response after what it is told, not after the student's prompt.
    With several contexts the rollouts of a prompt take them in turn, so that the mean over a step
    is one over contexts: the reverse KL then has their normalised geometric mean as its optimum
    (Many Faces, Eqs. 10 and 11).

    One optimiser update per step on that step's rollouts; prompts in order, a last partial batch
    dropped, epochs repeated as steps ask for (Rethinking OPD, Table 2 and section 3.3), or shuffled
    (``load``). Raises ``UserError`` where the pair does not fit (``pairing.compare``,
    ``objections``), a prompt is too long, or the loss is no number.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    common.prepare(cfg)
    # One temperature for both, unless the loss names another for the teacher: a student that equals
    # its teacher would else be taught to be sharper or flatter than it is.
    spec = loss_spec({"teacher_temperature": cfg["temperature"], **cfg["loss"]})
    tokenizer = load_tokenizer(inputs["student"])
    compared = pairing.compare(cfg, inputs["student"], inputs["teacher"])
    for objection in pairing.objections(cfg, compared):
        raise objection
    for where, k in (("loss.k", spec.k or 0), ("metrics_k", cfg["metrics_k"])):
        pairing.require_k(k, compared["vocabulary"], where)
    ends, beyond = pairing.end_ids(cfg, compared), compared["never_compared"]
    for note in compared["notes"]:
        print(f"note: {note}", file=sys.stderr)
    examples = load(cfg, inputs, tokenizer)
    attention = cfg.get("attention")
    student = load_model(inputs["student"], attention=attention)
    # A teacher that is never updated may be held in what it is computed in.
    frozen = cfg.get("teacher_update", "frozen") == "frozen"
    narrow = frozen and cfg.get("precision") == "bfloat16"
    dtype = torch.bfloat16 if narrow else torch.float32
    teacher = load_model(inputs["teacher"], dtype, attention)
    trim_vocabularies(student, teacher, tokenizer, beyond)
    arguments = common.rollout_arguments(cfg, "distill", scratch)
    if "end_tokens" in cfg:
        # The trained model ends its responses as it was trained to.
        student.generation_config.eos_token_id = ends
        if "vllm" in cfg:
            arguments["generation_kwargs"] = {"stop_token_ids": ends}
    args = DistillationConfig(**arguments)
    if "vllm" in cfg and compared["vocabulary"] < compared["embedding_rows"]["student"]:
        if args.vllm_mode == "server":
            raise UserError(
                f"a server of vLLM has {compared['embedding_rows']['student']} rows in the "
                f"student's head, of which {compared['vocabulary']} are trained",
                "training.vllm.mode",
                "use colocate",
            )
        student.name_or_path = str(scratch / "trimmed")  # what vLLM loads
        with args.main_process_first(desc="the student that vLLM loads"):
            if args.process_index == 0:
                save_trimmed(inputs["student"], compared["vocabulary"], scratch / "trimmed")
    trainer = Trainer(
        spec,
        cfg,
        teacher,
        model=student,
        args=args,
        train_dataset=examples,
        processing_class=tokenizer,
    )
    if cfg.get("packing"):
        with trainer.accelerator.autocast():
            for model in (student, teacher):
                require_boundaries(model)
    if trainer.update == "ema":
        if trainer.is_fsdp_enabled:
            raise UserError("an EMA teacher is not sharded", "teacher_update", "train it with ddp")
        trainer.add_callback(Follow(trainer))
    record = Record("distill", {}, lambda: trainer.measured, cfg.get("guard"))
    numbers = common.train(trainer, record, cfg, inputs["student"], out, scratch)
    return numbers | ({"never_compared": beyond} if beyond else {})
