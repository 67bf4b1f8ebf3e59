"""Encoders against sentence-transformers itself, and the cache of embeddings."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from opd.core import tables
from opd.core.code import module_digest
from opd.core.errors import UserError
from opd.data import embeddings, encoders, schemas
from opd.data.schemas import PROMPTS
from opd.stages.registry import code_digest
from opd.stages.run import run_stage

HASHED = {"encoder": "hashed", "execution": {"threads": 1}}


def payload(folder: Path, questions: list[str]) -> Path:
    folder.mkdir(parents=True)
    rows = [
        schemas.prompt_row(f"q{i}", question, "1", "s", i) for i, question in enumerate(questions)
    ]
    tables.write(folder / "prompts.parquet", rows, PROMPTS)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with a tiny MPNet of random weights, for 12 tokens at most."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *"abcdefghij", *(f"##{c}" for c in "abc")]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    plain = folder / "plain"
    MPNetModel(config).save_pretrained(plain)
    MPNetTokenizerFast(str(folder / "vocab.txt")).save_pretrained(plain)
    layers = Transformer(str(plain), max_seq_length=12)
    whole = SentenceTransformer(modules=[layers, Pooling(32), Normalize()])
    whole.save(str(folder / "model"))
    return folder / "model"


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 20))) for _ in range(n)]


def test_an_encoder_agrees_with_sentence_transformers_truncation_included(model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = sentences(60)
    assert sum(len(t.split()) > 10 for t in texts) > 10
    theirs = SentenceTransformer(str(model)).encode(texts, normalize_embeddings=True)
    ours = encoders.load(model)(texts)
    assert ours.dtype == np.float32 and ours.shape == (60, 32)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    # Only what is cut off differs.
    cut = encoders.load(model)(["a b c d e f g h i j a", "a b c d e f g h i j b b b"])
    np.testing.assert_array_equal(cut[0], cut[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_vector_does_not_depend_on_what_else_is_encoded(model: Path, threads: int) -> None:
    texts = sentences(40)
    together = encoders.load(model)(texts)
    encode = encoders.load(model, threads=threads)
    alone = np.concatenate([encode([text]) for text in texts])
    backwards = encode(texts[::-1])[::-1]
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(backwards, together)


def test_linear_layers_through_onednn_compute_the_same() -> None:
    torch = pytest.importorskip("torch")
    from opd.data.onednn import linear_layers_through_onednn

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(48, 33), torch.nn.Linear(33, 5, bias=False))
    x = torch.randn(3, 7, 48)
    with torch.inference_mode():
        before = (x.double() @ plain[0].weight.double().T + plain[0].bias.double()) @ plain[
            1
        ].weight.double().T
        linear_layers_through_onednn(plain)
        after = plain(x)
    assert not any(type(m) is torch.nn.Linear for m in plain.modules())
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_hashed_encoder_is_normalised_and_ignores_case_and_spacing() -> None:
    texts = ["What is 2+2?", "what  is\n2+2?", "Name a prime.", "é", "", "aaaa" * 200]
    vectors = encoders.encode_hashed(texts, dims=256)
    assert vectors.shape == (6, 256) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.5
    # A text's vector does not depend on its neighbours.
    np.testing.assert_array_equal(vectors[2], encoders.encode_hashed(["Name a prime."], 256)[0])


def test_hashed_encoder_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from opd.data.encoders import encode_hashed;"
        "print(hashlib.sha256(encode_hashed(['What is 2+2?', 'xyz']).tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_stage_writes_distinct_texts_in_their_order(tmp_path: Path) -> None:
    prompts = payload(tmp_path / "p", ["b b", " a", "b b\n", "c", "a"])
    out = tmp_path / "out"
    out.mkdir()
    made = embeddings.run(HASHED, {"prompts": prompts}, out, tmp_path / "cache")
    assert (made["prompts"], made["distinct"], made["encoded"]) == (5, 3, 3)
    vectors = np.load(out / "embeddings.npy")
    np.testing.assert_array_equal(vectors, encoders.encode_hashed(["b b", "a", "c"]))
    hashes = (out / "hashes.txt").read_text().split()
    assert hashes == [schemas.text_hash(t) for t in ("b b", "a", "b b", "c", "a")]


def test_a_grown_set_encodes_only_what_is_new(tmp_path: Path, monkeypatch) -> None:
    encoded: list[str] = []

    def load(*arguments):
        def encode(texts):
            encoded.extend(texts)
            return encoders.encode_hashed(texts)

        return encode

    monkeypatch.setattr(embeddings.encoders, "load", load)
    small = payload(tmp_path / "small", ["one", "two"])
    grown = payload(tmp_path / "grown", ["zero", " two ", "one", "three"])
    for name, prompts in (("a", small), ("b", grown)):
        (tmp_path / name).mkdir()
        embeddings.run(HASHED, {"prompts": prompts}, tmp_path / name, tmp_path / "cache")
    assert sorted(encoded) == ["one", "three", "two", "zero"]
    np.testing.assert_array_equal(
        np.load(tmp_path / "b" / "embeddings.npy"),
        encoders.encode_hashed(["zero", "two", "one", "three"]),
    )


def test_another_encoder_encodes_anew(model: Path, tmp_path: Path) -> None:
    prompts = payload(tmp_path / "p", sentences(5))
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(model), str(other)], check=True)
    config = other / "config_sentence_transformers.json"
    config.write_text(config.read_text() + "\n")

    def encoded(name: str, folder: Path) -> int:
        (tmp_path / name).mkdir()
        cfg = {"encoder": "model"}
        inputs = {"prompts": prompts, "encoder": folder}
        return embeddings.run(cfg, inputs, tmp_path / name, tmp_path / "cache")["encoded"]

    assert encoded("a", model) == 5
    assert encoded("b", model) == 0
    assert encoded("c", other) == 5
    np.testing.assert_array_equal(
        np.load(tmp_path / "a" / "embeddings.npy"), np.load(tmp_path / "b" / "embeddings.npy")
    )


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    prompts = payload(tmp_path / "p", [f"text {i}" for i in range(9)])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    embeddings.run(HASHED, {"prompts": prompts}, tmp_path / "a", tmp_path / "cache")
    (shard,) = (tmp_path / "cache").rglob("*.npz")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2000] + b"\xff" + whole[2001:])
    made = embeddings.run(HASHED, {"prompts": prompts}, tmp_path / "b", tmp_path / "cache")
    assert made["encoded"] == 9 and shard.read_bytes() == whole
    names = ("a", "b")
    first, second = ((tmp_path / n / "embeddings.npy").read_bytes() for n in names)
    assert first == second


def test_one_bit_anywhere_in_a_file_of_the_cache_is_found(tmp_path: Path) -> None:
    """Or does no harm, as in the time of the zip file: also in its headers, which say how it is
    packed."""
    hashes, vectors = ["a" * 64, "b" * 64], np.arange(4, dtype=np.float32).reshape(2, 2)
    embeddings.write_shard(tmp_path, hashes, vectors, tmp_path)
    (shard,) = tmp_path.glob("*.npz")
    whole = shard.read_bytes()
    absent = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        read = list(embeddings.read_shards(tmp_path))
        absent += not read
        for texts, numbers in read:
            assert texts == hashes and np.array_equal(numbers, vectors), place
    assert absent > len(whole) / 2


SLOW = """
import sys, time
from pathlib import Path
from opd.data import embeddings, encoders
embeddings.CHUNK = 4
def load(*arguments):
    def encode(texts):
        time.sleep(0.2)
        return encoders.encode_hashed(texts)
    return encode
embeddings.encoders.load = load
prompts, out, cache = map(Path, sys.argv[1:])
out.mkdir()
print(embeddings.run({"encoder": "hashed"}, {"prompts": prompts}, out, cache)["encoded"])
"""


def test_a_killed_stage_loses_one_chunk_at_most(tmp_path: Path) -> None:
    prompts = payload(tmp_path / "p", [f"text {i}" for i in range(80)])
    cache = tmp_path / "cache"

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW, str(prompts), str(tmp_path / name), str(cache)]
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    killed = start("a")
    while len(list(cache.rglob("*.npz"))) < 3:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = len(list(cache.rglob("*.npz")))
    # Two writers at once finish it, and both have the whole.
    second, third = start("b"), start("c")
    counts = [int(p.communicate(timeout=60)[0]) for p in (second, third)]
    assert 3 <= kept < 20 and max(counts) <= 80 - 4 * kept
    wanted = encoders.encode_hashed([f"text {i}" for i in range(80)])
    for name in ("b", "c"):
        np.testing.assert_array_equal(np.load(tmp_path / name / "embeddings.npy"), wanted)
    assert not list(cache.rglob("*.partial"))


def test_the_cache_outlives_the_stage_and_is_keyed_by_the_encoders_code_alone(tmp_path: Path):
    prompts = payload(tmp_path / "p", ["one", "two"])
    store, cfg = tmp_path / "store", {**HASHED, "inputs": ["prompts"]}

    def embed(name: str, **more: int) -> int:
        output = tmp_path / name / "digest.json"
        source = prompts / "prompts.parquet"
        folder = tmp_path / f"{name}-in"
        folder.mkdir()
        (folder / "prompts.parquet").write_bytes(source.read_bytes())
        assert run_stage("embed", {**cfg, **more}, [folder], output, {}, store)
        return json.loads((tmp_path / name / "manifest.json").read_text())["numbers"]["encoded"]

    assert embed("a") == 2
    # As after an edit of the stage's own code: it runs again, with nothing to encode.
    assert embed("b", code=1) == 0
    assert module_digest("opd.data.encoders") != code_digest("embed")


def test_bad_input(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    empty = payload(tmp_path / "p", ["one", " \n"])
    with pytest.raises(UserError, match=r"prompts.parquet: row 1: the question is empty"):
        embeddings.run(HASHED, {"prompts": empty}, out, tmp_path / "cache")
    with pytest.raises(UserError, match="no sentence-transformers model"):
        encoders.load(tmp_path / "missing")
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(model), str(broken)], check=True)
    from safetensors.numpy import load_file, save_file

    (weights,) = broken.rglob("*.safetensors")
    values = load_file(weights)
    name = next(n for n in values if n.endswith("LayerNorm.bias"))
    save_file({**values, name: values[name] * np.nan}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights are broken"):
        encoders.load(broken)(["a b"])
    assert not list(out.iterdir())
