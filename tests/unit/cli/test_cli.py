"""What the command line refuses, what its help says, and settings given on it."""

import argparse
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake.cli import parse_config

from opd.cli import main, overview
from opd.cli.commands import stage
from opd.recipes.resolve import settings, typed

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PREFLIGHT = ["preflight", "--student", "s", "--teacher", "t", "--questions", "p"]


def commands() -> dict[str, argparse.ArgumentParser]:
    return dict(main.parser()[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*PREFLIGHT, "--k", "0"], "argument --k: 0 is not allowed: a whole number from 1 up"),
        ([*PREFLIGHT, "--n", "0"], "argument --n: 0 is not allowed: a whole number from 1 up"),
        ([*PREFLIGHT, "--n", "many"], "argument --n: many is not allowed: a whole number"),
        ([*PREFLIGHT, "--n", "1.5"], "argument --n: 1.5 is not allowed: a whole number"),
        ([*PREFLIGHT, "--samples", "-1"], "argument --samples: -1 is not allowed"),
        ([*PREFLIGHT, "--max-new-tokens", "0"], "argument --max-new-tokens: 0 is not allowed"),
        ([*PREFLIGHT, "--max-prompt-tokens", "0"], "argument --max-prompt-tokens: 0 is not"),
        ([*PREFLIGHT, "--seed", "-1"], "argument --seed: -1 is not allowed: a whole number from 0"),
        ([*PREFLIGHT, "--temperature", "0"], "argument --temperature: 0 is not allowed: a number"),
        ([*PREFLIGHT, "--temperature", "nan"], "argument --temperature: nan is not allowed"),
        ([*PREFLIGHT, "--temperature", "inf"], "argument --temperature: inf is not allowed"),
        ([*PREFLIGHT, "--dtype", "float8"], "argument --dtype: invalid choice: 'float8'"),
        ([*PREFLIGHT, "--backend", "vlm"], "argument --backend: invalid choice: 'vlm'"),
        (["plan", "--gpus", "0"], "argument --gpus: 0 is not allowed: a whole number from 1 up"),
        (["plan", "--confi", "a=1"], "unrecognized arguments: --confi a=1"),
        (["preflight", "--stu", "s"], "the following arguments are required: --student"),
    ],
)
def test_what_is_wrong_with_an_argument_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    *usage, line = printed.err.splitlines()
    assert said in line and usage[0].startswith("usage: opd")
    assert len(usage) <= 3


def options(command: str) -> Iterator[argparse.Action]:
    for action in commands()[command]._actions:
        if not isinstance(action, argparse._HelpAction):
            yield action


@pytest.mark.parametrize(
    "command", ["preflight", "plan", "claims", "calibrate", "watch", "lock", "doctor"]
)
def test_help_says_what_an_option_is_and_what_it_is_without(command: str) -> None:
    for option in options(command):
        text = option.help or ""
        assert len(text) > 5, option.dest
        if option.required or option.nargs == 0:
            continue
        assert "%(default)s" in text or "if not given" in text, (option.dest, text)
    text = commands()[command].format_help()
    assert "None" not in text and "[]" not in text and "PosixPath" not in text


def test_help_has_the_defaults_and_units() -> None:
    text = re.sub(r"\s+", " ", commands()["preflight"].format_help())
    for words in (
        "tokens; so that it ends in about three minutes if not given",
        "tokens; 1024 if not given",
        "float32 if not given",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *(("1", 1), ("-1.5e-3", -0.0015), ("1e3", 1000.0), ("1.0e-6", 1e-6), ("1_000", 1000)),
        *(("true", True), ("True", True), ("False", False), ("yes", True), ("null", None)),
        *(("", None), ("text", "text"), ("b=c", "b=c"), ("'x'", "x"), ('"1"', 1), (": :", ": :")),
        *(("[1, x, true]", [1, "x", True]), ("{b: {c: 1, d: 'null'}}", {"b": {"c": 1, "d": None}})),
        *(("0x10", 16), ("08", 8), ("[1", "[1"), ("2024-01-01", "2024-01-01")),
    ],
)
def test_settings_are_read_as_snakemake_reads_them(value: str, read: object) -> None:
    entries = [f"a-key={value}", "other={a: 1}", "other={b: 2}"]
    assert settings(entries) == {"a-key": read, "other": {"a": 1, "b": 2}}
    assert settings(entries) == typed(parse_config(entries))


@pytest.mark.parametrize("given", ["seeds", "=3", "1seed=2", "a b=2"])
def test_a_setting_is_a_key_and_a_value(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["plan", "--config", given])
    assert capsys.readouterr().err == f"error: --config: '{given}' is no setting; write KEY=VALUE\n"


def test_a_key_below_another_is_written_as_a_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["plan", "--config", "models.mine.steps=3"])
    line = "'models.mine.steps=3' is no setting; write 'models={mine: {steps: 3}}'"
    assert capsys.readouterr().err == f"error: --config: {line}\n"
    assert settings(["models={mine: {steps: 3}}"]) == {"models": {"mine": {"steps": 3}}}


def test_help_lists_every_command_once_with_an_example_that_can_be_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main_help, known = main.parser()[0].format_help(), commands()
    examples = {name: text for group in overview.COMMANDS.values() for name, text in group.items()}
    assert not known.keys() - examples
    for name, parser in known.items():
        (line,) = re.findall(rf"^  {name} +(\S.*)", main_help, re.MULTILINE)
        assert line == parser.description
        words = shlex.split(re.sub("[;>].*", "", examples[name]))
        assert main.parse([name, *words]).command == name, name
        assert f"  opd {name} {examples[name]}\n" in parser.format_help()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plam"], "opd: error: argument COMMAND: invalid choice: 'plam'; did you mean 'plan'?"),
        (["plan", "--tarjet", "x"], "unrecognized arguments: --tarjet x; did you mean '--target'?"),
        (["audit", "--configfiles=x", "r"], "--configfiles=x; did you mean '--configfile'?"),
    ],
)
def test_what_was_meant_by_a_word_is_said(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main.main(arguments)
    assert capsys.readouterr().err.splitlines()[-1].endswith(line)


def test_bare_opd_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == 2 and "before a run:\n" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"opd {project['version']}\n"


def completed(words: list[str]) -> set[str]:
    """What bash offers for the last of these words."""
    script = f"""{overview.completion(commands())}
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
_opd opd {shlex.quote(words[-1])}; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_and_options() -> None:
    assert completed(["opd", "a"]) == {"adopt", "align", "audit"}
    assert completed(["opd", "plan", "--c"]) == {
        "--configfile",
        "--config",
        "--claim",
        "--calibration",
    }
    assert completed(["opd", "plan", "x"]) == set()


def test_json_is_a_flag_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    having = {name for name, p in commands().items() if "--json" in overview.options_of(p)}
    assert having == {"plan", "doctor", "why", "diff", "audit", "gc"}
    for name in having:
        (option,) = (o for o in options(name) if "--json" in o.option_strings)
        assert option.nargs == 0


@pytest.mark.parametrize(
    ("arguments", "asks"),
    [
        (["corpus", "--cfg", "{}"], False),
        (["evaluate", "--cfg", "{}"], False),
        (["prompts", "--cfg", '{"source": {"world": {"n": 1}}}'], False),
        (["prompts", "--cfg", '{"source": {"hub": "a/b", "revision": "c"}}'], True),
        (["fetch", "--cfg", "{}"], True),
        (["dataset", "--cfg", "{}"], True),
    ],
)
def test_only_what_fetches_may_ask_the_hub(arguments: list[str], asks: bool) -> None:
    given = main.parse(["stage", *arguments, "--output", "x"])
    assert given.online(given) is asks


@pytest.mark.parametrize(
    ("student", "teacher", "asks"),
    [("./m", "/m", False), ("results/n/models/m", "~/m", False), ("o/m", "./m", True)],
)
def test_a_probe_of_models_at_hand_asks_no_hub(student: str, teacher: str, asks: bool) -> None:
    pair = ["--student", student, "--teacher", teacher]
    for command in (
        ["preflight", "--questions", "q"],
        ["align", "--questions", "q", "--grader", "g"],
    ):
        given = main.parse([*command, *pair])
        assert given.online(given) is asks


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/r/x"), "/r/x: no room (No space left on device)"),
        (OSError(122, "Disk quota exceeded"), "/s: no room (Disk quota exceeded); free space"),
        (
            RuntimeError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
            "/s: no room (No space left on device)",
        ),
        (OSError(30, "Read-only file system", "/r"), "/r: not allowed (Read-only file system)"),
        (PermissionError(13, "Permission denied", "/r"), "/r: not allowed (Permission denied)"),
        (MemoryError(), "/s: memory does not suffice (out of it); give the job more memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            ),
            "/s: memory does not suffice ([enforce fail",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "CUDA out of memory"),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "run_stage", fails)
    corpus = ["corpus", "--cfg", "{}", "--output", "a/digest.json", "--store", "/s"]
    with pytest.raises(SystemExit) as ended:
        main.main(["stage", *corpus])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and said in line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(5, "Input/output error")])
def test_what_nobody_foresaw_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "run_stage", fails)
    with pytest.raises(type(error)):
        main.main(["stage", "corpus", "--cfg", "{}", "--output", "a/digest.json"])
