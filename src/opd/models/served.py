"""A teacher behind vLLM's OpenAI-compatible server: what it makes of the tokens of responses.

A completion request whose prompt is the token ids of a prompt and its response, with
``prompt_logprobs: k``, has for every token its log-probability and those of the k likeliest, all of
the raw distribution (temperature 1). The one token that such a request has to sample is not looked
at.

Legend: B sequences, P prompt positions, T response positions, k likeliest tokens of a position.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic_core import from_json
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.core.errors import UserError
from opd.losses.scores import Scores, of_teacher_alone

# Requests of a process in flight at once: what vLLM can make one batch of.
IN_FLIGHT = 32
# How long a server may be away (refuse or reset connections, or say that it is busy), how long an
# answer may take, and the first and the longest pause before another try.
PATIENCE_SECONDS, ANSWER_SECONDS, PAUSES_SECONDS = 300.0, 600.0, (0.5, 15.0)
AWAY = (429, 502, 503, 504)  # HTTP statuses of a server, or of what stands before it, to ask again
# What k probabilities may sum to, rounded as they are.
MOST_MASS = 1.001
NO_TOKEN = np.iinfo(np.int64).max
# Read by server and teacher's tokenizer: they have to make the same tokens of it.
TEXT = "12 + 34 = 46. So the answer is 46."


class Server(NamedTuple):
    """Where a teacher is served: an address (http://HOST:PORT), the id by which requests name the
    model, what it was loaded from, the longest sequence that it reads (tokens), and the version of
    vLLM."""

    url: str
    id: str
    root: str
    max_model_len: int
    version: str


def connect(url: str, names: Iterable[str], folder: Path) -> Server:
    """Ask a server what it serves, and find the teacher there: a model whose id or root is one of
    its ``names`` or its ``folder``. Raises ``UserError`` where there is none, and as ``scores``
    does where the server cannot be asked."""
    models = _answer(url, "/v1/models").get("data", [])
    known = {*names, str(folder)}
    for model in models:
        root = model.get("root") or model["id"]
        if known & {model["id"], root} or Path(root).absolute().resolve() == folder.resolve():
            version = str(_answer(url, "/version").get("version"))
            return Server(url, model["id"], root, int(model.get("max_model_len") or 0), version)
    served = ", ".join(f"{model['id']} ({model.get('root')})" for model in models) or "nothing"
    wanted = " or ".join(dict.fromkeys(names))
    raise UserError(
        f"it serves {served}, and not the teacher {wanted}",
        url,
        f"serve the teacher there (vllm serve {folder} --served-model-name {wanted.split()[0]}), "
        "or mend the address in training.servers",
    )


def require_served(
    server: Server, tokenizer: PreTrainedTokenizerBase, k: int, vocabulary: int, longest: int
) -> None:
    """Raise ``UserError`` unless a server has room for sequences of ``longest`` tokens, reads a
    short text as the same tokens as the teacher's ``tokenizer``, and gives its scores
    (``scores``)."""
    if longest + 1 > server.max_model_len:  # and one that has to be sampled
        raise UserError(
            f"it reads {server.max_model_len} tokens, and prompt and response may have {longest}",
            server.url,
            f"serve the teacher with --max-model-len {longest + 1}, or lower max_prompt_tokens and "
            "max_new_tokens",
        )
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    as_text = {"add_special_tokens": False, "return_token_ids": True}
    read, ids, log_probs = _completion(server, TEXT, k, 1, **as_text)
    if read != tokens:
        raise UserError(
            f"it reads {TEXT!r} as tokens {read}, the teacher's tokenizer as {tokens}",
            server.url,
            "serve the teacher with its own tokenizer, with vLLM 0.10.2 or newer",
        )
    _likeliest(server, ids, log_probs, tokens[1:], k, vocabulary)


def scores(
    server: Server,
    prompts: tuple[Tensor, Tensor],
    responses: tuple[Tensor, Tensor],
    k: int,
    vocabulary: int,
) -> Scores:
    """What the served model makes of the tokens of responses, each after its prompt: the k
    likeliest tokens, likeliest first and of equal ones the lower id, and the response's own.

    ``prompts`` and ``responses`` are ids and mask, [B, P] and [B, T] each; a response's tokens come
    first, and about one without any nothing is asked. The result is 0 where the mask is, and on
    the device of the ids. Of the B requests IN_FLIGHT are on their way at a time.

    Raises ``UserError`` for a server that is away longer than PATIENCE_SECONDS, that refuses a
    request (as for a sequence that is too long for it), or whose answer is incomplete, no
    log-probabilities, or about tokens that are not below ``vocabulary``.
    """
    sequences = [
        [ids[counts != 0].tolist() for ids, counts in zip(*part, strict=True)]
        for part in (prompts, responses)
    ]

    def of_sequence(prompt: list[int], response: list[int]) -> tuple[np.ndarray, ...]:
        if not response:
            return ()
        _, ids, log_probs = _completion(server, prompt + response, k, len(prompt))
        return _likeliest(server, ids, log_probs, response, k, vocabulary)

    shape, device = responses[0].shape, responses[0].device
    result = of_teacher_alone(
        torch.zeros(*shape, k, dtype=torch.int32), torch.zeros(*shape, k), torch.zeros(shape)
    )
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for row, of_row in enumerate(pool.map(of_sequence, *sequences)):
            for whole, part in zip(result, of_row, strict=False):
                whole[row, : len(part)] = torch.from_numpy(part)
    return Scores(*(whole.to(device) for whole in result))


def _likeliest(
    server: Server,
    ids: np.ndarray,
    log_probs: np.ndarray,
    tokens: Sequence[int],
    k: int,
    vocabulary: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of what is given at t places, [t, w] each (``_completion``), the ids [t, k] of the likeliest
    tokens, their log-probabilities [t, k], and those of the ``tokens`` that stand there, [t]."""
    if len(ids) != len(tokens):
        what = f"it gives log-probabilities of {len(ids)} of {len(tokens)} tokens"
        raise UserError(what, server.url, "serve the teacher with vLLM")
    given, own = ids != NO_TOKEN, ids == np.array(tokens)[:, None]
    if (fewest := given.sum(1).min(initial=k)) < k or not own.any(1).all():
        what = f"it gives {fewest} log-probabilities where {k} and the token's own are asked for"
        raise UserError(what, server.url, "serve the teacher with vLLM")
    if not np.isfinite(log_probs[given]).all():
        what = "a log-probability of the teacher is no number"
        raise UserError(what, server.url, "look at the weights and at the dtype that it serves")
    sampled, order = log_probs[own], np.lexsort((ids, -log_probs))[:, :k]
    ids, log_probs = (np.take_along_axis(values, order, 1) for values in (ids, log_probs))
    if (largest := ids.max(initial=0)) >= vocabulary:
        raise UserError(
            f"token {largest} is among the teacher's {k} likeliest, and the student learns "
            f"{vocabulary}",
            server.url,
            "lower loss.k and metrics_k, or let the teacher be read in training",
        )
    if np.exp(log_probs).sum(1).max(initial=0) > MOST_MASS or sampled.max(initial=0) > 0:
        what = "what it gives are no log-probabilities: their exponentials sum to more than 1"
        raise UserError(what, server.url, "serve the teacher with --logprobs-mode raw_logprobs")
    return ids, log_probs, sampled


def _completion(
    server: Server, prompt: str | list[int], k: int, start: int, **more: Any
) -> tuple[list[int] | None, np.ndarray, np.ndarray]:
    """The tokens of a prompt, if the server is asked for them, and of the t of them from ``start``
    on the ids [t, w] and log-probabilities [t, w] that it gives at each place, w at most: where
    there are fewer, NO_TOKEN and -inf."""
    request = {"model": server.id, "prompt": prompt, "prompt_logprobs": k, "max_tokens": 1}
    answer = _answer(server.url, "/v1/completions", {**request, "temperature": 1.0, **more})
    try:
        choice = answer["choices"][0]
        places = choice["prompt_logprobs"][start:]
        ids = np.full((len(places), max(map(len, places), default=k)), NO_TOKEN)
        log_probs = np.full(ids.shape, -np.inf)
        for i, place in enumerate(places):
            ids[i, : len(place)] = [int(id) for id in place]
            log_probs[i, : len(place)] = [entry["logprob"] for entry in place.values()]
        return choice.get("prompt_token_ids"), ids, log_probs
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        what = "its answer has no log-probabilities of the prompt"
        raise UserError(what, server.url, "serve the teacher with vLLM") from None


def _answer(url: str, path: str, request: Mapping[str, Any] | None = None) -> Any:
    """What a server answers, read from JSON. While it is away it is asked again, for up to
    PATIENCE_SECONDS; where nothing is posted, as before training, a line tells of it."""
    body = None if request is None else json.dumps(request).encode()
    asked = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    (pause, longest), until = PAUSES_SECONDS, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
                return from_json(answer.read())  # in half the time of json, and answers are long
        except urllib.error.HTTPError as error:
            if error.code not in AWAY:
                what = f"it refuses a request ({error.code}: {_message(error)})"
                remedy = "serve the teacher with a --max-logprobs and a --max-model-len for it"
                raise UserError(what, url + path, remedy) from None
            reason = f"HTTP status {error.code}"
        except ValueError:
            remedy = "name a server of vLLM in training.servers"
            raise UserError("its answer is no JSON", url + path, remedy) from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if request is None and pause == PAUSES_SECONDS[0]:
            line = f"no answer from {url} ({reason}): asked again for {PATIENCE_SECONDS:g} seconds"
            print(f"note: {line}", file=sys.stderr)
        if time.monotonic() + pause > until:
            raise UserError(
                f"the server has not answered for {PATIENCE_SECONDS:g} seconds ({reason})",
                url,
                "start it, or mend its address in training.servers, and run the same command: "
                "training goes on from its last checkpoint",
            )
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says of a request that it refuses, in at most 300 characters."""
    text = error.read().decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]["message"]
    return text[:300]
