"""The terms of the sum that a step of distillation minimises, as settings. Without torch, so that a
plan can reckon with them; what a term computes is in ``opd.losses.terms``.

A term is a mapping: ``teacher`` or ``reference`` (the input of the stage that is its model) with
``loss``, and perhaps ``information`` and ``teacher_chat_template_kwargs``, or one of two that say
that it is not loaded: ``scores`` (the input that holds what the teacher made of the responses) and
``server`` (it is asked of one); or ``reward``. Each has a ``weight``, and perhaps ``where``, the
rows that it is over, and ``tokens``, what each of their tokens counts (``opd.losses.weights``).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.core.text import suggestion

Term = Mapping[str, Any]
# Of ``tokens``: weights by what student and teacher make of a token, so by their states. The others
# follow from the rollouts alone.
BY_STATES = frozenset(
    ("entropy", "teacher_entropy", "divergence", "overlap", "advantage", "drift", "clip_nats")
)
# What is measured of a term: its part of the loss of a step, before its weight, and the weight; the
# share of the step's tokens that count in it, and of the sizes of its losses that these have; of a
# reward the share of responses that are right.
MEASURED = ("loss", "weight", "token_share", "loss_share", "reward")


# Before the name of a model, the name of its server.
SERVER = "server:"


class Reading(NamedTuple):
    """One model that reads the responses after one prompt: an input of the stage (the model, or the
    scores that are kept of it) or its server (``scored_by``), and the name of what it is asked in a
    batch, where that is not what the student is asked."""

    model: str
    prompt: str

    @property
    def served(self) -> bool:
        """Whether it is a server that reads."""
        return self.model.startswith(SERVER)

    def asked(self, batch: Mapping[str, Any]) -> str:
        """The name in a batch of what the model is asked."""
        return self.prompt if f"{self.prompt}_ids" in batch else "prompt"


def terms_of(cfg: Mapping[str, Any]) -> Sequence[Term]:
    """The terms of a run's settings. A ``teacher`` with a ``loss`` is one term of weight 1."""
    if "terms" in cfg:
        terms: Sequence[Term] = cfg["terms"]
        return terms
    keys = ("loss", "information", "teacher_chat_template_kwargs", "scores", "server")
    return [{"teacher": "teacher", "weight": 1.0, **{k: cfg[k] for k in keys if k in cfg}}]


def model_of(term: Term) -> str | None:
    """The input of the stage that is a term's model; None of a reward."""
    return term.get("teacher") or term.get("reference")


def scored_by(term: Term) -> str | None:
    """Where the scores of a term's teacher come from that is not loaded: the input that holds them,
    or server:INPUT for the server of the model INPUT."""
    return f"{SERVER}{model_of(term)}" if "server" in term else term.get("scores")


def models(terms: Sequence[Term]) -> list[str]:
    """The models of all terms that are loaded, each once: not those of which there are scores."""
    named = (model_of(term) for term in terms if not scored_by(term))
    return list(dict.fromkeys(name for name in named if name))


def scores(terms: Sequence[Term]) -> list[str]:
    """The inputs that hold scores, of all terms, each once."""
    return list(dict.fromkeys(term["scores"] for term in terms if "scores" in term))


def student_serves(cfg: Mapping[str, Any]) -> bool:
    """Whether a term whose model is the student needs no second copy: it is the student as it is (a
    live teacher), or as it was, which it still is beneath an adapter."""
    update = cfg.get("teacher_update", "frozen")
    return update == "live" or (update == "frozen" and "adapter" in cfg)


def readings(terms: Sequence[Term]) -> list[Reading | None]:
    """The reading of each term, None of a reward. Terms whose model is told the same share it."""
    shared: dict[str, Reading] = {}
    result: list[Reading | None] = []
    for term in terms:
        if (name := scored_by(term) or model_of(term)) is None:
            result.append(None)
            continue
        model_and_context = repr(
            [name, term.get("information"), term.get("teacher_chat_template_kwargs")]
        )
        prompt = "teacher_prompt" if not shared else f"teacher_prompt_{len(shared)}"
        result.append(shared.setdefault(model_and_context, Reading(name, prompt)))
    return result


def keeps_states(terms: Sequence[Term]) -> bool:
    """Whether the teachers' states of a whole step are kept: where several take turns on the
    device, and where token weights look at all of a step before its first micro-batch."""
    return len(models(terms)) > 1 or any(
        not BY_STATES.isdisjoint(term.get("tokens", ())) for term in terms
    )


def graders(terms: Sequence[Term]) -> list[str]:
    """The graders that rewards and token weights ask, each once."""
    asking = [term.get("reward") for term in terms]
    asking += [term.get("tokens", {}).get("correct") for term in terms]
    return sorted({settings["grader"] for settings in asking if settings})


def measured(terms: int) -> list[str]:
    """The names of what is measured of so many terms, as term_0_loss."""
    return [f"term_{i}_{name}" for i in range(terms) for name in MEASURED]


def weight_at(weight: float | Mapping[str, Any], step: int, steps: int) -> float:
    """A term's weight at a step of a run of ``steps``, counted from 0: a number, or {start, end,
    steps}, which goes from one to the other linearly over so many steps (all, if not given)."""
    if not isinstance(weight, Mapping):
        return weight
    last = weight.get("steps", steps) - 1
    done = min(1.0, step / last) if last else 1.0
    return float(weight["start"] + done * (weight["end"] - weight["start"]))


def routed(terms: Sequence[Term], rows: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
    """Which terms each row of PROMPTS, which may have the name of its set as ``prompts``, belongs
    to by their ``where``: {column: value or values}.

    Raises ``UserError`` for a column that prompts do not have or that is empty in a row, and where
    no row fits.
    """
    columns: list[list[bool]] = []
    for i, term in enumerate(terms):
        fits = [True] * len(rows)
        for column, wanted in term.get("where", {}).items():
            values = _column(rows, column, f"terms.{i}.where.{column}")
            among = wanted if isinstance(wanted, list) else [wanted]
            fits = [fit and value in among for fit, value in zip(fits, values, strict=True)]
            if True not in fits:
                known = ", ".join(sorted({repr(value) for value in values})[:8])
                reason = f"no prompt has {' or '.join(map(repr, among))}"
                remedy = f"there are {known}"
                raise UserError(reason, f"terms.{i}.where.{column}", remedy)
        columns.append(fits)
    return [list(row) for row in zip(*columns, strict=True)]


def _column(rows: Sequence[Mapping[str, Any]], column: str, where: str) -> list[Any]:
    if column not in rows[0]:
        raise UserError(f"prompts have no column '{column}'", where, suggestion(column, rows[0]))
    values = [row[column] for row in rows]
    if None in values:
        row = rows[values.index(None)]
        remedy = f"give every prompt a {column}, or leave such rows out"
        raise UserError(f"the prompt '{row['id']}' has none", where, remedy)
    return values


def require_answers(terms: Sequence[Term], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``UserError`` for a row without an answer where rollouts are graded."""
    for row in rows if graders(terms) else ():
        if not row["answer"].strip():
            raise UserError(
                f"the prompt '{row['id']}' has no answer to grade rollouts by",
                "terms: grader",
                "give the prompt set answers, or leave such rows out",
            )
