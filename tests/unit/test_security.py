"""Nothing that comes from outside is run, opens a way out, steers a reader's screen, or leaks.

A trap is data that makes a file when it is executed: a test fails if the file is there.
"""

import ast
import io
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from duplicates import neighbours_of, payload, remove
from reported import reported as reported
from results import Results, check, claim, found, published, sample, target
from scripts import without_script
from tiny import SFT, Inputs, files, run

from opd.cli.main import main
from opd.core import security, tables
from opd.core.errors import UserError
from opd.core.files import content, read_json
from opd.data import contamination
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import fetch
from opd.plan import hub_lock, pairs
from opd.provenance import diff
from opd.recipes import resolve
from opd.results import claims_page
from opd.stages import records, registry
from opd.stages import run as runner

SOURCES = sorted((Path(__file__).parents[2] / "src" / "opd").rglob("*.py"))
TOKEN = "hf_" + "PlantedTokenOfNobody1234567"
PASSWORD = "planted-password"


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (self.path,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """What a trap makes. Traps work: the fixture springs one to prove it, and puts it back."""
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))
    path.rmdir()
    return path


def process(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """``opd`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "opd", *arguments],
        env={**os.environ, **variables},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


# Code in data


def called(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a module."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


# The loaders of YAML that make plain values only.
SAFE = ("SafeLoader", "yaml.SafeLoader", "yaml.BaseLoader")


def forbidden(text: str) -> list[str]:
    """What a module must not hold, each as it stands there."""
    tree = ast.parse(text)
    wrong = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        modules = ("pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle")
        wrong += [f"import {name}" for name in names if name.partition(".")[0] in modules]
    for name, call in called(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        last = name.rpartition(".")[2]
        loader = given.get("Loader") or "".join(map(ast.unparse, call.args[1:2]))
        bad = (
            name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            or name in ("tempfile.mktemp", "yaml.unsafe_load", "yaml.full_load")
            or last in ("extractall", "unpack_archive", "read_pickle", "from_pickle")
            or (name == "yaml.load" and loader not in SAFE)
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("shell", "False") != "False"
            or given.get("allow_pickle", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or (last == "Environment" and given.get("autoescape") != "True")
        )
        wrong += [ast.unparse(call)] if bad else []
    return wrong


def test_no_module_unpickles_evaluates_or_trusts() -> None:
    assert len(SOURCES) > 80
    assert {str(path): found for path in SOURCES if (found := forbidden(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "eval(x)", "exec(x)", "os.system(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)"),
        *("yaml.load(x)", "yaml.load(x, yaml.Loader)", "yaml.unsafe_load(x)", "z.extractall(x)"),
        *("subprocess.run(x, shell=True)", "m.from_pretrained(x, trust_remote_code=True)"),
        *("Environment(loader=x)", "Environment(autoescape=False)"),
    ],
)
def test_what_must_not_be_there_would_be_seen(line: str) -> None:
    assert forbidden(line)
    assert not forbidden("model.eval(); re.compile(x); yaml.load(x, yaml.BaseLoader)")


def test_pickled_weights_are_not_read(inputs: Inputs, tmp_path: Path, sprung: Path) -> None:
    from opd.models.checkpoints import load_model

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((inputs["student"] / "config.json").read_text())
    for name in ("pytorch_model.bin", "model.pt"):
        torch.save(Trap(sprung), folder / name)
    with pytest.raises(Exception):  # noqa: B017 - which error is the library's business
        load_model(folder)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x/optimizer.PT", "modeling.py", "a.pkl"])
def test_a_stage_reads_no_folder_with_code_or_pickles(
    tmp_path: Path, sprung: Path, name: str
) -> None:
    """Also where the records say that it belongs there."""
    results = Results(tmp_path)
    results.add("init", "models/m/s0", {"config.json": "{}", "model.safetensors": "x"})
    given = results.root / "models/m/s0/digest.json"
    payload = given.with_name("payload")
    path = payload / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    records.write_json(given, read_json(given) | {"outputs": content(payload)})
    out = tmp_path / "out" / "digest.json"
    with pytest.raises(UserError, match="may run code"):
        runner.run_stage("keep", {"inputs": ["model"]}, [given], out, {}, tmp_path / "store")
    assert not sprung.exists() and not out.exists()


def test_of_a_checkpoint_only_weights_and_settings_are_fetched(
    tmp_path: Path, sprung: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_text("x")
    for name in ("pytorch_model.bin", "modeling.py", "training_args.pt", "hook.so"):
        (source / name).write_bytes(pickle.dumps(Trap(sprung)))
    fetch.run({"path": str(source)}, {}, out, tmp_path / "scratch")
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    assert not any(part in fetch.PATTERNS for part in ("*", "*.*", "*.bin", "*.py", "*.pt"))


def test_a_trap_in_the_resume_state_of_a_run_is_not_sprung(
    inputs: Inputs, tmp_path: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scratch folders are shared with whoever shares the results, and can write checksums."""
    from tiny import Killed, kill_at

    from opd.training import checksums

    cfg = {**SFT, "steps": 4, "execution": {"checkpoint_every": 2}}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(3, patch)
        run("sft", cfg, inputs, tmp_path / "out")
    checkpoint = tmp_path / "out-scratch" / "checkpoint-2"
    states = {p.name for p in checkpoint.iterdir() if p.suffix in (".pt", ".pth", ".bin")}
    unread = "training_args.bin"
    assert len(states - {unread}) >= 3
    before = files(checkpoint)
    for name in sorted(states - {unread}):
        torch.save({"state": Trap(sprung)}, checkpoint / name)
        checksums.write(checkpoint)
        with pytest.raises(Exception):  # noqa: B017 - which error is the library's business
            run("sft", cfg, inputs, tmp_path / "out")
        assert not sprung.exists(), name
        (checkpoint / name).write_bytes(before[name])
    if unread in states:
        torch.save(Trap(sprung), checkpoint / unread)
    checksums.write(checkpoint)
    run("sft", cfg, inputs, tmp_path / "out")
    assert not sprung.exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path, sprung: Path) -> None:
    from opd.data import embeddings, neighbours

    trap = np.array([Trap(sprung)], dtype=object)
    np.save(tmp_path / "embeddings.npy", trap, allow_pickle=True)
    (tmp_path / "hashes.txt").write_text("0\n")
    with pytest.raises(ValueError, match="Python objects"):
        neighbours._read(tmp_path)
    np.savez(tmp_path / "shard.npz", hashes=trap, vectors=trap)
    assert list(embeddings.read_shards(tmp_path)) == []
    assert not sprung.exists()


def test_a_parquet_file_brings_no_python_type(tmp_path: Path, sprung: Path) -> None:
    """Old readers unpickled the type that a column's metadata named."""
    from opd.data import loaders

    path = tmp_path / "prompts.parquet"
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(sprung)),
    }
    schema = pa.schema([pa.field("question", pa.string(), metadata=metadata)])
    pq.write_table(pa.table({"question": ["1+1"]}, schema=schema), path)
    source = {"path": path.name, "question": "question", "answer": "question"}
    assert list(loaders.read_file(path, source)) == [{"question": "1+1"}]
    with pytest.raises(UserError):
        tables.read(path, PROMPTS)
    assert not sprung.exists()


def test_yaml_makes_no_objects(tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{sprung}']\n")
    for arguments in (["lock", "--configfile", str(path)], ["plan", "--configfile", str(path)]):
        with pytest.raises((UserError, SystemExit, yaml.YAMLError)):
            main(arguments)
    text = f"!!python/object/apply:os.mkdir ['{sprung}']"
    resolve.settings([f"name={text}"])
    assert resolve.typed({"a": text}) == {"a": text}
    assert not sprung.exists()


def remote_code(folder: Path, student: Path, sprung: Path) -> None:
    """A model that asks to be loaded with code of its own."""
    folder.mkdir()
    for file in student.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "modeling_trap.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    auto = {
        "AutoConfig": "modeling_trap.Config",
        "AutoModelForCausalLM": "modeling_trap.Model",
        "AutoTokenizer": ["modeling_trap.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings |= {"auto_map": auto, "model_type": "trap", "tokenizer_class": "Trap"}
        (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize("guarded", [True, False])
def test_nobody_is_asked_to_run_a_models_own_code(
    inputs: Inputs, tmp_path: Path, sprung: Path, guarded: bool
) -> None:
    """Libraries ask on the terminal, and a pipe may say yes; even without our own look at it."""
    remote_code(tmp_path / "model", inputs["student"], sprung)
    model, prompts = str(tmp_path / "model"), str(inputs["prompts"] / "prompts.parquet")
    arguments = ["preflight", "--student", model, "--teacher", model, "--questions", prompts]
    arguments += ["--n", "2", "--samples", "1", "--max-new-tokens", "4"]
    script = (
        "from opd.cli import main; from opd.cli.commands import untrained\n"
        "untrained.refuse_code = lambda folder: None; main.main()"
    )
    command = ["-m", "opd"] if guarded else ["-c", script]
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        input="y\n" * 50,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 2 and "\nerror: " in f"\n{done.stderr}", done.stderr
    assert ("may run code" in done.stderr) is guarded
    assert not sprung.exists()


@pytest.mark.parametrize("grader", ["world", "choice", "rule", "math_verify"])
def test_answers_are_graded_and_not_evaluated(tmp_path: Path, sprung: Path, grader: str) -> None:
    from opd.grading import graders

    code = f"__import__('os').mkdir('{sprung}')"
    hostile = [code, rf"\text{{{code}}}", rf"\operatorname{{{code}}}", f"1+{code}", f"[{code}]"]
    pairs = [(rf"so \boxed{{{text}}} #{text}", text) for text in (*hostile, "2")]
    pairs += [(response, "1") for response, _ in pairs]
    graders.grade_all(pairs, grader)
    assert not sprung.exists()


def test_a_chat_template_reaches_no_objects(inputs: Inputs, tmp_path: Path, sprung: Path) -> None:
    from jinja2.exceptions import SecurityError

    from opd.models.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(inputs["student"])
    chat = [{"role": "user", "content": "?"}]
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        f"{{{{ cycler.__init__.__globals__.os.mkdir('{sprung}') }}}}",
    ):
        tokenizer.chat_template = template
        with pytest.raises(SecurityError):
            tokenizer.apply_chat_template(chat, tokenize=False)
    assert not sprung.exists()


# What readers see

HOSTILE = (
    "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
    '<a href="javascript:alert(3)">x</a>javascript:alert(4)'
    "\u202egnp.exe\u202c \x1b[2J\x1b]0;owned\x07 \x9b31m {{ 7 * 7 }} ${x}"
)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Page(HTMLParser):
    """Checks a page while it reads it: no script, nothing that starts one, no foreign address."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base"), tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "action"):
                address = (value or "").strip().lower()
                scheme = re.match(r"[a-z][a-z0-9+.-]*:", address)
                assert scheme is None or address.startswith("data:image/"), (tag, value)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def harmless(html: str) -> str:
    """The text of a page that is safe to open."""
    assert not CONTROLS.search(html)
    page = Page(without_script(html))
    assert "default-src 'none'" in html  # a browser runs nothing even if something slipped by
    return page.text


def test_a_report_of_hostile_text_is_harmless(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.run("distill", "models/m/s0", {}, device=HOSTILE, versions={HOSTILE: HOSTILE})
    training = {HOSTILE: "models/m/s0"}
    results.cfg["title"] = results.cfg["scale"] = HOSTILE
    results.figure("javascript:alert(5)", HOSTILE, training, title=HOSTILE, caption=HOSTILE)
    results.table("t", training, title=HOSTILE, caption=HOSTILE)
    table = results.root / "tables/t/payload/table.md"
    table.write_text(f"**x**\n\n| a |\n| --- |\n| {HOSTILE} |\n\n{HOSTILE}\n")
    results.claims(hostile_claims(), {})
    reported(results, tmp_path / "out")
    text = harmless((tmp_path / "out" / "report.html").read_text())
    assert text.count("alert('1')") >= 10 and "⟨U+202E⟩gnp.exe" in text and "{{ 7 * 7 }}" in text


def hostile_claims() -> dict[str, Any]:
    made = found()
    row = {**published(HOSTILE, HOSTILE, HOSTILE, None), "source": HOSTILE}
    made["claims"].append(
        claim(
            *("x", "reproduced"),
            experiment=HOSTILE,
            section=HOSTILE,
            statement=HOSTILE,
            reason=HOSTILE,
            figure="javascript:alert(6)",
            published=[row],
            checks=[check(HOSTILE, "reproduced")],
        )
    )
    made["targets"].append(target(HOSTILE, ["x"], [HOSTILE], metric=HOSTILE, context=HOSTILE))
    return {"scale": HOSTILE, **made}


def test_claims_of_hostile_text_are_harmless() -> None:
    text = harmless(claims_page.page(hostile_claims()))
    assert text.count("alert('1')") >= 5 and "⟨U+001B⟩" in text


def test_hostile_questions_are_harmless_on_the_pages_of_deduplication(tmp_path: Path) -> None:
    ours = payload(tmp_path / "ours", [f"{HOSTILE} {i}" for i in range(3)])
    theirs = payload(tmp_path / "theirs", [HOSTILE, "theirs"])
    rows = [(0, 0, 1.0), (None, 1, 0.61), (None, 1, 0.59)]
    near = neighbours_of(tmp_path / "near", ours, theirs, rows)
    remove(tmp_path / "dedup", 0.6, {"prompts": ours, "against": theirs, "neighbours": near})
    inputs = {"prompts": theirs, f"benchmark:{HOSTILE}": ours, f"neighbours:{HOSTILE}": near}
    (tmp_path / "found").mkdir()
    contamination.run({"threshold": 0.6}, inputs, tmp_path / "found")
    # A pair with it on one side for each row near the threshold. Of contamination the name of the
    # benchmark three times, the nearest prompts (2, 1), and those that share words (2, 2).
    for page, many in (("dedup/dedup.html", 2), ("found/contamination.html", 3 + 2 + 1 + 2 + 2)):
        text = harmless((tmp_path / page).read_text())
        assert text.count("alert('1')") == many and "⟨U+202E⟩gnp.exe" in text


def test_a_watched_run_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "payload").mkdir()
    rows = [
        {"step": 1, "name": name, "position": None, "value": 1.0}
        for name in ("loss", "\x1b[2Jloss", HOSTILE)
    ]
    tables.write(tmp_path / "payload" / "metrics.parquet", rows, METRICS)
    (tmp_path / "digest.json").write_text("{}")
    main(["watch", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "loss" in shown and not CONTROLS.search(shown)


def test_the_place_of_a_run_that_stopped_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, name = tmp_path / "results" / "mini", "models/m\x1b[2J/s0"
    for folder in (results / name, (results / "logs" / name).parent):
        folder.mkdir(parents=True)
    (results / "logs" / f"{name}.log").write_text("step 4\n")
    (results / "plan.json").write_text(json.dumps({name: {}}))
    main(["watch", str(results / name)])
    shown = capsys.readouterr().out
    assert shown.startswith("it stopped: step 4 (") and "m⟨U+001B⟩[2J/s0.log" in shown
    assert not CONTROLS.search(shown)


def test_an_error_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["watch", str(tmp_path / HOSTILE.replace("/", "|"))])
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "⟨U+001B⟩[2J" in said
    assert not CONTROLS.search(said)


def test_errors_that_do_not_end_a_command_and_edits_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a lock and of pairs of models, and what a run says of settings that were edited."""
    bad = UserError(f"{HOSTILE}\nand more", "models.m", "mend it")
    monkeypatch.setattr(hub_lock, "lock", lambda *_: ({}, [bad]))
    config = Path(__file__).parents[2] / "config" / "mini.yaml"
    with pytest.raises(SystemExit):
        main(["lock", "--configfile", str(config)])
    monkeypatch.setattr(pairs, "refused", lambda *_, **__: [bad])
    assert pairs.main(tmp_path / "plan.json", []) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("error: models.m: ") == 2
    results = Results(tmp_path)
    results.add("init", "models/m/s0", {"config.json": "{}"})
    said += diff.edits(results.root / "models/m/s0", {"title": HOSTILE})
    assert said.count("⟨U+001B⟩[2J") == 3 and not CONTROLS.search(said)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\x1b[0mb", "a⟨U+001B⟩[0mb"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("a\r\nb\x00", "a⟨U+000D⟩\nb⟨U+0000⟩"),
        ("\x9b31m \udc9b31m", "⟨U+009B⟩31m ⟨U+DC9B⟩31m"),
        ("日本 é ∑ 👩‍🔬", "日本 é ∑ 👩‍🔬"),
    ],
)
def test_control_characters_are_spelt_out(text: str, shown: str) -> None:
    assert security.visible(text) == shown
    assert security.visible_line(text) == shown.replace("\n", "⟨U+000A⟩")


def test_what_a_stage_says_cannot_steer_the_terminal_and_bars_of_progress_are_drawn() -> None:
    stream = io.StringIO()
    security.Redacting(stream).write("\r 50% \x1b[A\x1b[2J\n\x1b]0;title\x07")
    assert stream.getvalue() == "\r 50% \x1b[A⟨U+001B⟩[2J\n⟨U+001B⟩]0;title⟨U+0007⟩"


# Escape sequences as text and as bytes that are no UTF-8, and a line of its own.
NAMES = (b"e\x1b[31mX", b"\x9b31m", b"\xc2\x9b", b"n\ncomplete: all", b"r\rQ", "o\u202ex".encode())


def test_names_and_records_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (sample(tmp_path / name).root for name in ("ours", "theirs"))
    made = theirs / "models/small-from-large/s0"
    for folder in (made / "payload", theirs):
        for name in NAMES:
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_text("x")
    for name in NAMES:
        other = Path(os.fsdecode(os.path.join(os.fsencode(theirs / "models"), name)), "s0")
        shutil.copytree(theirs / "models/small/s0", other)
    manifest = read_json(made / "manifest.json")
    odd = {key: f"{key}\x1b[31m\ncomplete: all \ud800" for key in ("host", "device", "started")}
    settings = {"k\x1b[2J": "v\x1b]0;t\x07\ncomplete: all"}
    manifest |= {**odd, "cfg": settings, "numbers": {"n\x1b": 1.0}, "versions": {"p\x1b": "\x1b"}}
    (made / "manifest.json").write_text(json.dumps(manifest))
    for command in (["audit", theirs], ["audit", made], ["why", made], ["diff", ours, theirs]):
        with suppress(SystemExit):
            main([*map(str, command)])
        shown = capsys.readouterr()
        text = shown.out + shown.err
        assert "⟨U+001B⟩" in text and not CONTROLS.search(text)
        assert not re.search("[\ud800-\udfff]|^complete: all", text, re.MULTILINE)


# Files and their modes


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077, 0o027])
def test_modes_follow_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    class Module:
        @staticmethod
        def run(cfg: Any, inputs: Any, out: Path) -> dict:
            (out / "folder").mkdir()
            (out / "folder" / "x.txt").write_text("x")
            (out / "y.csv").write_text("y")
            (out / "y.csv").chmod(0o600)  # as safetensors leaves weights
            return {}

    monkeypatch.setitem(sys.modules, "opd.fake_stage", Module)
    monkeypatch.setitem(registry.STAGES, "fake", registry.Stage("opd.fake_stage:run", "x", "a"))
    before = os.umask(umask)
    try:
        root = tmp_path / "results"
        output, copies = root / "a" / "digest.json", {"y.csv": root / "a.csv"}
        runner.run_stage("fake", {"inputs": []}, [], output, copies, root / ".store")
    finally:
        os.umask(before)
    paths = [root, *root.rglob("*"), *(root / "a" / "payload").resolve().rglob("*")]
    assert len(paths) > 8
    for path in paths:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, (path, oct(mode))


# Secrets


def planted(folder: Path) -> list[Path]:
    """Files below a folder that hold the token or the password."""
    secrets = (TOKEN.encode(), PASSWORD.encode())
    there = [p for p in folder.rglob("*") if p.is_file()]
    return [p for p in there if any(secret in p.read_bytes() for secret in secrets)]


SECRETS = {
    "HF_TOKEN": TOKEN,
    "WANDB_API_KEY": PASSWORD,
    # Nothing listens there: the hub's errors name the address.
    "HF_ENDPOINT": f"http://user:{PASSWORD}@127.0.0.1:9",
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_ETAG_TIMEOUT": "1",
}


def test_a_hub_that_fails_gives_no_secret_away(tmp_path: Path) -> None:
    root = tmp_path / "results"
    data = {"hub": "some/data", "revision": "0" * 40}
    stages: dict[str, dict[str, Any]] = {
        "fetch": {"hub": "some/model", "revision": "0" * 40},
        "dataset": data,
        "prompts": {"source": data, "seed": 1},
    }

    def failed(stage: str) -> subprocess.CompletedProcess[str]:
        given = json.dumps({**stages[stage], "inputs": []})
        where = ["--output", str(root / stage / "digest.json"), "--store", str(root / ".store")]
        cache = str(tmp_path / stage)
        return process("stage", stage, "--cfg", given, *where, **SECRETS, HF_HOME=cache)

    # Side by side: most of the time they wait before they ask once more.
    with ThreadPoolExecutor() as pool:
        for done in pool.map(failed, stages):
            output = done.stdout + done.stderr
            assert done.returncode != 0 and "some/" in output, output
            assert TOKEN not in output and PASSWORD not in output, output
    assert planted(root) == []


def test_what_a_run_writes_holds_no_secret(tmp_path: Path) -> None:
    """Prompts of the world, then a model: every file that the stages have made, and what they
    said."""
    root = tmp_path / "results"
    world = {"seed": 3, "rl_times": 0.4, "other_times": 0.1}
    world |= {"exact_duplicates": 0.0, "near_duplicates": 0.0}
    source = {"world": {"split": "rl", "n": 4}}
    corpus = {"n": 4, "precedence": 0.5, "style": "infix", "templates": ["{question}"], "seed": 1}
    for stage, cfg in (
        ("prompts", {"source": source, "world": world}),
        ("corpus", {"world": world, **corpus}),
    ):
        where = ["--output", str(root / stage / "digest.json"), "--store", str(root / ".store")]
        done = process(
            "stage", stage, "--cfg", json.dumps({**cfg, "inputs": []}), *where, **SECRETS
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
    assert len(list(root.rglob("manifest.json"))) == 2
    assert planted(root) == []


def test_an_unforeseen_error_gives_no_secret_away() -> None:
    script = (
        "import sys; from opd.cli import main as cli\n"
        "def fails(arguments): raise RuntimeError('GET https://user:' + 'PASSWORD@host/ TOKEN')\n"
        "from opd.cli.commands import plan\n"
        "plan._schema = fails; sys.argv = ['opd', 'schema']; cli.main()"
    )
    script = script.replace("PASSWORD", PASSWORD).replace("TOKEN", TOKEN)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **SECRETS},
    )
    assert done.returncode == 1 and "RuntimeError: GET https://***@host/ ***" in done.stderr


def test_a_config_with_a_secret_is_refused_before_it_is_written_anywhere() -> None:
    for value in (TOKEN, f"http://user:{PASSWORD}@host:8000"):
        with pytest.raises(UserError, match="token or a password") as caught:
            resolve.resolve({"name": "x", "training": {"vllm": {"server_base_url": value}}})
        assert caught.value.where == "training.vllm.server_base_url"
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN}", "Bearer ***"),
        (f"at https://ada:{PASSWORD}@hub.example/x", "at https://***@hub.example/x"),
        ("https://ada:pass/word@hub.example/x", "https://***@hub.example/x"),
        ("https://ada:/+=@hub.example/x", "https://***@hub.example/x"),
        ("https://hub.example:8080/a@main", "https://hub.example:8080/a@main"),
        ("hf_AnotherTokenThatIsNotSet99", "hf_***"),
        ("a hf_hub is no token, true is none", "a hf_hub is no token, true is none"),
        ("https://hub.example/datasets/a@main", "https://hub.example/datasets/a@main"),
    ],
)
def test_redaction(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    for name, value in {"HF_TOKEN": TOKEN, "MY_PASSWORD": PASSWORD, "USE_TOKEN": "true"}.items():
        monkeypatch.setenv(name, value)
    assert security.redacted(text) == shown
