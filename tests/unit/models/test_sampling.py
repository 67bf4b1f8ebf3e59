"""Sampling with a random tiny model: the choice of tokens, prefixes, journals, bad input."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd.core.errors import UserError
from opd.models import init, journal, transformers_engine
from opd.models.sampling import Request, Response, Sampler

torch = pytest.importorskip("torch")

LIMITS: dict[str, Any] = {"max_new_tokens": 24, "max_prompt_tokens": 64, "seed": 3}
PROMPTS = ["1+2=", "3*4-5=", "solve 1+2*3-4=", "9-9="]
IDS = list("abcd")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    cfg = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "seed": 0}
    init.run(cfg, {}, folder)
    return folder


def requests(sampler: Sampler, samples: int = 1, ids: Sequence[str] = IDS) -> list[Request]:
    prompts = [{"prompt": PROMPTS[IDS.index(id)]} for id in ids]
    tokens = sampler.tokenize(prompts, ids)
    return [Request(i, t, k) for i, t in zip(ids, tokens, strict=True) for k in range(samples)]


def sample(model: Path, samples: int = 1, ids: Sequence[str] = IDS, **cfg: Any) -> list[Response]:
    sampler = Sampler(model, {**LIMITS, **cfg})
    return sampler.sample(requests(sampler, samples, ids))


def test_responses_end_where_they_should(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = sample(model, 3)
    assert len(found) == 12 and len({response.text for response in found}) == 12
    for response in found:
        tokens = response.token_ids
        assert tokenizer.eos_token_id not in tokens[:-1]
        assert (response.finish == "stop") == (tokens[-1] == tokenizer.eos_token_id)
        assert response.finish == "stop" or len(tokens) == LIMITS["max_new_tokens"]
        assert response.text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert {response.finish for response in found} == {"stop", "length"}


def test_a_response_depends_on_its_own_request_only(model: Path) -> None:
    whole = sample(model, 3)
    assert whole == sample(model, 3, batch_size=5)
    fewer = sample(model, 2, ids=["b", "c"])
    assert fewer == [whole[3], whole[4], whole[6], whole[7]]
    torch.manual_seed(99)
    assert whole == sample(model, 3)
    for other in (sample(model, 3, seed=4), sample(model, 3, ids=IDS[::-1])):
        assert all(a != b for a, b in zip(whole, other, strict=True))
    sampler = Sampler(model, LIMITS)
    again = [
        Request(r.id, r.prompt, r.sample, attempt=attempt)
        for attempt in (0, 1, 2)
        for r in requests(sampler, 3)
    ]
    found = sampler.sample(again)
    assert found[:12] == whole
    assert len({response.text for response in found}) == 36


def test_greedy_is_the_argmax_of_a_plain_forward(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    sampler = Sampler(model, {**LIMITS, "temperature": 0})
    asked = requests(sampler)
    found = sampler.sample(asked)
    assert found == sample(model, temperature=0, seed=8)
    plain = AutoModelForCausalLM.from_pretrained(model)
    for request, response in zip(asked, found, strict=True):
        prompt = list(request.prompt)
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + response.token_ids])).logits[0]
        assert response.token_ids == logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()


def test_penalties_of_the_checkpoint_do_not_apply(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    more = {"repetition_penalty": 9.0, "temperature": 0.1, "top_k": 1, "do_sample": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert sample(model) == sample(tmp_path / "model")


def test_a_response_continued_from_its_own_beginning_goes_on_as_it_did(model: Path) -> None:
    """Also where prefixes of several lengths share a batch, and an empty one is a plain sample."""
    sampler = Sampler(model, LIMITS)
    plain = requests(sampler, 3)
    whole = sampler.sample(plain)
    lengths = [0, 1, 2, 5, 9, 20]
    asked, wanted = [], []
    for i, (request, response) in enumerate(zip(plain, whole, strict=True)):
        prefix = response.token_ids[: lengths[i % len(lengths)]]
        asked.append(Request(request.id, request.prompt, request.sample, prefix=prefix))
        wanted.append((prefix, response))
    for response, (prefix, before) in zip(sampler.sample(asked), wanted, strict=True):
        assert response.token_ids[: len(prefix)] == prefix
        n = len(before.token_ids)
        assert response.token_ids[:n] == before.token_ids
        assert response.text.startswith(before.text)
        # New tokens are counted after the prefix.
        if response.finish == "length":
            assert len(response.token_ids) == len(prefix) + LIMITS["max_new_tokens"]


def test_any_ids_can_be_forced(model: Path) -> None:
    sampler = Sampler(model, {**LIMITS, "max_new_tokens": 3})
    (request,) = requests(sampler, ids=["a"])
    # The ids of a text would be others: "1" comes twice as one character each, out of any order.
    for prefix in ([9, 9, 9, 9], [3], list(range(2, 30))):
        (response,) = sampler.sample([Request("a", request.prompt, prefix=prefix)])
        assert response.token_ids[: len(prefix)] == prefix
        assert 1 <= len(response.token_ids) - len(prefix) <= 3
        assert response.text.startswith(sampler.tokenizer.decode(prefix, skip_special_tokens=True))


def test_a_prefix_that_has_ended_is_a_whole_response(model: Path) -> None:
    sampler = Sampler(model, LIMITS)
    (request,) = requests(sampler, ids=["a"])
    (stop,) = sampler.stops
    (ended,) = sampler.sample([Request("a", request.prompt, prefix=[5, 6, stop])])
    assert ended == Response([5, 6, stop], sampler.tokenizer.decode([5, 6]), "stop")
    with pytest.raises(UserError, match="'a': the prefix goes on after the end-of-turn token at 1"):
        sampler.sample([Request("a", request.prompt, prefix=[5, stop, 6])])
    # It takes no place in a batch.
    plain = requests(sampler, 2)
    among = [*plain[:3], Request("z", request.prompt, prefix=[stop]), *plain[3:]]
    found = sampler.sample(among)
    assert found[:3] + found[4:] == sampler.sample(plain)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_shards_are_the_whole_list_cut_by_length(batch_size: int) -> None:
    lengths = [4, 1, 3, 1, 2, 4, 9, 1]
    jobs = {i * 10: transformers_engine.Job([0] * n, 0, 0) for i, n in enumerate(lengths)}
    found = list(transformers_engine.shards(jobs, batch_size))
    flat = [i for shard in found for i in shard]
    assert flat == [10, 30, 70, 40, 20, 0, 50, 60]
    assert all(len(shard) == batch_size for shard in found[:-1])


def test_what_is_journaled_is_not_sampled_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {**LIMITS, "batch_size": 3}
    sampler = Sampler(model, cfg, tmp_path)
    asked = requests(sampler, 3)
    batch = transformers_engine.Transformers.batch
    sampled: list[int] = []

    def counted(self: Any, jobs: Sequence[transformers_engine.Job]) -> list[list[int]]:
        sampled.append(len(jobs))
        if len(sampled) == 3:
            raise KeyboardInterrupt
        return batch(self, jobs)

    monkeypatch.setattr(transformers_engine.Transformers, "batch", counted)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(asked)
    assert sampled == [3, 3, 3]
    found = Sampler(model, cfg, tmp_path).sample(asked)
    assert sampled == [3] * 5  # two were whole, the third was lost, four make twelve
    assert found == sample(model, 3)
    # Once all is there, not even the model is loaded.
    monkeypatch.setattr(transformers_engine.Transformers, "__init__", None)
    assert Sampler(model, cfg, tmp_path).sample(asked) == found


def test_another_list_or_other_settings_use_no_old_journal(model: Path, tmp_path: Path) -> None:
    sampler = Sampler(model, LIMITS, tmp_path)
    asked = requests(sampler, 2)
    sampler.sample(asked)
    (path,) = tmp_path.rglob("*.jsonl")
    journaled = path.read_bytes()
    lists = {
        "fewer": asked[:-1],
        "order": asked[::-1],
        "attempt": [Request(r.id, r.prompt, r.sample, attempt=1) for r in asked],
        "prompt": [Request(r.id, [*r.prompt, 5], r.sample) for r in asked],
        "prefix": [Request(r.id, r.prompt, r.sample, prefix=[5]) for r in asked],
        "place of a token": [Request(r.id, r.prompt[:-1], 0, r.prompt[-1:]) for r in asked[::2]],
    }
    for n, (name, other) in enumerate(lists.items()):
        assert sampler.sample(other) == Sampler(model, LIMITS).sample(other), name
        assert len(list(tmp_path.rglob("*.jsonl"))) == n + 2, name
    for n, (key, value) in enumerate({"seed": 4, "temperature": 0.5, "batch_size": 2}.items()):
        Sampler(model, {**LIMITS, key: value}, tmp_path).sample(asked)
        assert len(list(tmp_path.rglob("*.jsonl"))) == len(lists) + n + 2, key
    assert path.read_bytes() == journaled


def test_a_torn_journal_is_read_as_far_as_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a word: that is what every kill may leave."""
    path = tmp_path / "journal.jsonl"
    lines: list[journal.Finished] = [{3: [1, 2], 0: []}, {7: [5]}, {1: [2**31 - 1], 2: [0]}]
    with journal.writing(path) as append:
        for line in lines:
            append(line)
    whole = path.read_bytes()
    ends = [len(b"".join(whole.splitlines(keepends=True)[:n])) for n in range(4)]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        n = sum(end <= length for end in ends) - 1
        merged = {i: tokens for line in lines[:n] for i, tokens in line.items()}
        assert journal.read(path) == (merged, ends[n])
        with journal.writing(path) as append:
            append({9: [9]})
        assert journal.read(path)[0] == merged | {9: [9]}
    assert capsys.readouterr().err == ""
    # Blocks that were allocated and never written are zeros.
    path.write_bytes(whole + bytes(4096))
    assert journal.read(path)[1] == len(whole)
    assert journal.read(path, ends[1]) == ({7: [5], 1: [2**31 - 1], 2: [0]}, len(whole))
    assert journal.read(tmp_path / "none") == ({}, 0)


def test_each_line_of_a_journal_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all of it is written: a loss of power takes no more than what is in flight."""
    path, synced, fsync = tmp_path / "journal.jsonl", [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(path.read_bytes().count(b"\n")) or fsync(file)
    )
    with journal.writing(path) as append:
        append({0: [5, 6]})
        append({1: [7]})
    assert synced == [1, 2]


def test_a_changed_journal_is_read_up_to_the_first_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit anywhere, a digit of a token or an index, a line of another type: what follows is
    taken off by the next writer, with one line."""
    path = tmp_path / "journal.jsonl"
    with journal.writing(path) as append:
        append({0: [5, 6]})
        append({1: [7]})
    sound = path.read_bytes()
    first, second = sound.splitlines(keepends=True)
    for place in range(len(sound)):
        for bit in range(8):
            changed = bytearray(sound)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            before = place >= len(first)
            assert journal.read(path) == ({0: [5, 6]} if before else {}, len(first) * before)
    assert second.endswith(b" [[1,[7]]]\n")
    for line in (second.replace(b"7", b"8", 1), b"[[1,[7]]]\n", b'"words"\n', b"\n"):
        path.write_bytes(first + line + second)
        capsys.readouterr()
        with journal.writing(path) as append:
            append({2: [9]})
        assert journal.read(path)[0] == {0: [5, 6], 2: [9]}
        warning = f"warning: {path}: damaged from byte {len(first)} on, what follows is sampled"
        assert capsys.readouterr().err.count(warning) == 1
    with journal.writing(path):
        assert capsys.readouterr().err == ""


def test_what_a_damaged_journal_has_lost_is_sampled_again(model: Path, tmp_path: Path) -> None:
    sampler = Sampler(model, {**LIMITS, "batch_size": 3}, tmp_path)
    asked = requests(sampler, 3)
    whole = sampler.sample(asked)
    (path,) = tmp_path.rglob("*.jsonl")
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b",", b",1", 2))
    assert Sampler(model, {**LIMITS, "batch_size": 3}, tmp_path).sample(asked) == whole
    assert path.read_bytes() == sound


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_a_journal_has_the_modes_of_umask(model: Path, tmp_path: Path, umask: int) -> None:
    """A second member of a group goes on with what the first has begun."""
    before = os.umask(umask)
    try:
        sampler = Sampler(model, LIMITS, tmp_path / "cache")
        sampler.sample(requests(sampler, 1))
    finally:
        os.umask(before)
    paths = [*(tmp_path / "cache").rglob("*")]
    assert len(paths) == 3
    for path in paths:
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_model_in_the_hubs_cache_has_the_journals_of_its_files(
    model: Path, tmp_path: Path
) -> None:
    """Its folder holds links alone: what they lead to is what names a journal."""
    folder, blobs = tmp_path / "models--o--n/snapshots/c0", tmp_path / "models--o--n/blobs"
    for place in (folder, blobs):
        place.mkdir(parents=True)
    for path in model.iterdir():
        shutil.copyfile(path, blobs / path.name)
        (folder / path.name).symlink_to(blobs / path.name)
    for place in (model, folder):
        sampler = Sampler(place, LIMITS, tmp_path / "cache")
        sampler.sample(requests(sampler, 1))
    assert len([*(tmp_path / "cache").rglob("*.jsonl")]) == 1
    (blobs / "generation_config.json").write_text('{"eos_token_id": 7}')
    Sampler(folder, LIMITS, tmp_path / "cache").sample(requests(sampler, 1))
    assert len([*(tmp_path / "cache").rglob("*.jsonl")]) == 2
    (folder / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"c0/more\.json: it is a link that leads out"):
        Sampler(folder, LIMITS, tmp_path / "cache")


FULL = """
import resource, sys
from pathlib import Path
from opd.models import journal
resource.setrlimit(resource.RLIMIT_FSIZE, (350, resource.RLIM_INFINITY))
with journal.writing(Path(sys.argv[1])) as append:
    for i in range(100):
        append({i: [7, 8, 9]})
"""


def test_no_room_is_one_line_and_keeps_what_is_whole(tmp_path: Path) -> None:
    """A limit of the file's size stands for the disk's: the write fails half done."""
    path = tmp_path / "journal.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True)
    assert f"{path}: no room (File too large), what was finished is kept; free space" in done.stderr
    # A line is a checksum of 64 bytes, a space, and 14 bytes.
    assert journal.read(path) == ({i: [7, 8, 9] for i in range(4)}, 4 * 79)
    assert path.stat().st_size == 4 * 79


def reference(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, written out."""
    probabilities = np.exp((logits - logits.max()) / temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("vocabulary", [7, 600])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.8, 0), (0.5, 0.95, 0), (1.3, 1.0, 3), (1.0, 0.6, 5)],
)
def test_choice_has_the_right_distribution(
    vocabulary: int, temperature: float, top_p: float, top_k: int
) -> None:
    # A flat tail, so that the likeliest few hundred do not hold top_p.
    logits = np.random.default_rng(0).normal(size=vocabulary) * (3 if vocabulary < 100 else 0.3)
    wanted = reference(logits, temperature, top_p, top_k)
    grid = 20_000
    uniforms = torch.arange(grid, dtype=torch.float64).add(0.5).div(grid)
    rows = torch.tensor(logits, dtype=torch.float32).expand(grid, -1)
    chosen = transformers_engine.choose(rows, uniforms, temperature, top_p, top_k)
    found = np.bincount(chosen.numpy(), minlength=vocabulary) / grid
    # An evenly spaced grid of uniforms reproduces each probability up to one cell on either side.
    np.testing.assert_allclose(found, wanted, atol=2.5 / grid)
    ends = transformers_engine.choose(
        rows[:2], torch.tensor([0.0, 1 - 2**-53]), temperature, top_p, top_k
    )
    assert all(wanted[i] > 0 for i in ends.tolist())


def test_choice_at_temperature_zero_and_rows_apart() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 1.0]])
    assert transformers_engine.choose(logits, torch.rand(2), 0, 0.1, 1).tolist() == [1, 0]
    assert transformers_engine.choose(logits, torch.tensor([0.5, 0.5]), 1.0, 0.5, 0).tolist() == [
        1,
        0,
    ]


def test_cut() -> None:
    assert transformers_engine.cut([5, 6, 1, 1, 0], {0, 1}) == ([5, 6, 1], "stop")
    assert transformers_engine.cut([5, 6], {1}) == ([5, 6], "length")
    assert transformers_engine.cut([1], {1}) == ([1], "stop")


def test_bad_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"prompt 'b' \(row 1\): the prompt has 8 tokens, more than 6"
    ):
        sample(model, max_prompt_tokens=6)
    with pytest.raises(UserError, match="unknown backend 'sglang'; use transformers or vllm"):
        sample(model, backend="sglang")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        sample(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no usable tokenizer"):
        sample(tmp_path)
    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="bare: the tokenizer has no chat template"):
        sample(tmp_path / "bare")
    shutil.copytree(model, tmp_path / "light")
    (tmp_path / "light" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="light: no usable weights"):
        sample(tmp_path / "light")
    sampler = Sampler(model, LIMITS)
    with pytest.raises(UserError, match="request 'a': sample 0 is asked for twice"):
        sampler.sample(requests(sampler) * 2)
    assert sampler.sample([]) == []


def test_vllm_that_is_not_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the worker's process too, and wherever vLLM may be installed.
    (tmp_path / "vllm.py").write_text("raise ImportError('not today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(UserError, match=r"backend: vLLM cannot be imported \(not today\); install"):
        sample(model, backend="vllm")
