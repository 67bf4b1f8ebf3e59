"""Teachers behind servers (``opd.models.served``), as a run of distillation asks them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from opd.core.errors import UserError
from opd.losses.scores import Scores
from opd.models import served
from opd.models.checkpoints import load_tokenizer
from opd.models.served import Server
from opd.training import terms
from opd.training.objective import Term


class Teacher(NamedTuple):
    """A teacher behind a server, and how many of the likeliest tokens a run asks it for: the most
    that a loss or the metrics look at."""

    server: Server
    k: int


def connected(
    cfg: Mapping[str, Any],
    inputs: Mapping[str, Path],
    sum_of: Sequence[Term],
    pairs: Mapping[str, Mapping[str, Any]],
    vocabulary: int,
) -> dict[str, Teacher]:
    """The teachers of the terms that are behind a server, by ``terms.scored_by``; execution.servers
    has the address (url) and the names of each by its input.

    Raises ``UserError`` as ``served.connect`` and ``served.require_served`` do, and for a teacher
    with special tokens that the student does not have: a server gives them probability, and a
    teacher that is loaded has them cut off.
    """
    ks: dict[str, int] = {}
    for term in sum_of:
        if term.reading and term.reading.served:
            name = term.reading.model
            ks[name] = max(ks.get(name, cfg["metrics_k"]), term.k)
    prompt = max(cfg["max_prompt_tokens"], cfg.get("max_teacher_prompt_tokens", 0))
    teachers: dict[str, Teacher] = {}
    for name, k in ks.items():
        model = name.removeprefix(terms.SERVER)
        if beyond := pairs[model]["never_compared"]:
            raise UserError(
                f"its teacher has special tokens that the student does not have ({beyond})",
                "server",
                "let the teacher be read in training, which cuts them off",
            )
        server = served.connect(**cfg["execution"]["servers"][model], folder=inputs[model])
        tokenizer, longest = load_tokenizer(inputs[model]), prompt + cfg["max_new_tokens"]
        served.require_served(server, tokenizer, k, vocabulary, longest)
        teachers[name] = Teacher(server, k)
    return teachers


def asking(teacher: Teacher, vocabulary: int) -> Callable[[Mapping[str, Tensor], str], Scores]:
    """What asks for the scores of a batch, of which this is the name of what the teacher is asked:
    of a student that learns so many tokens. Raises within ``failures``."""

    def ask(batch: Mapping[str, Tensor], prompt: str) -> Scores:
        prompts, responses = (
            (batch[f"{part}_ids"], batch[f"{part}_mask"]) for part in (prompt, "completion")
        )
        try:
            return served.scores(teacher.server, prompts, responses, teacher.k, vocabulary)
        except UserError as error:
            raise _Failed(error) from error

    return ask


class _Failed(Exception):
    """What a server has failed with, apart from other ``UserError``: a run that ends with one of
    those is not tried again (``opd.training.resume``), but a server may be mended."""


@contextmanager
def failures() -> Iterator[None]:
    """Raises what servers fail with in training as the ``UserError`` that it is."""
    try:
        yield
    except _Failed as failed:
        raise failed.args[0] from None


def reported(teachers: Mapping[str, Teacher]) -> dict[str, Any]:
    """What was served, for the report of a run: of each teacher id, root, max_model_len and the
    version of the server, and k. Where it was is no part of it."""
    keys = ("id", "root", "max_model_len", "version")
    by_input = {
        name.removeprefix(terms.SERVER): {"k": k, **{key: getattr(server, key) for key in keys}}
        for name, (server, k) in teachers.items()
    }
    return {"served": by_input} if by_input else {}
