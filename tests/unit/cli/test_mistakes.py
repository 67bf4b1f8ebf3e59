"""Mistakes of a user, on the real command line: each is answered with one line that says where it
is, what is wrong and what to do, and none with a traceback."""

# ruff: noqa: E501

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from results import sample

from opd.cli.main import main

ROOT = Path(__file__).parents[3]
CONFIG = """
name: mini
world: {rl_times: 0.6, other_times: 0.15}
defaults: {init: {hidden: 16, layers: 1, heads: 2, kv_heads: 1, intermediate: 16}}
models: {small: {init: {}}, large: {init: {}}}
prompts: {rl: {world: {split: rl, n: 4}}}
"""
BAD = {
    "twice.yaml": "name: a\nname: b\n",
    "tab.yaml": "name:\n\t- a\n",
    "list.yaml": "[1, 2]\n",
    "key.yaml": CONFIG.replace("models:", "modles:"),
    "seeds.yaml": CONFIG + "seeds: [0, 0]\n",
    "token.yaml": CONFIG.replace("hidden: 16", "hidden: hf_" + "a" * 34),
    "ref.yaml": CONFIG + "generations: {r: {model: smal, prompts: rl}}\n",
    "target.yaml": CONFIG + "targets: [reprt]\n",
    "over.yaml": "name: mini\nx-needs: [base]\n",
    "file.yaml": CONFIG.replace("name: mini", "name: file"),
    "paper.yaml": CONFIG + "papers: [rethinking]\n",
    "data.yaml": CONFIG.replace("world: {split: rl, n: 4}", "path: {file: ./none.jsonl}"),
}
MINE = ["--configfile", "my.yaml"]
PAIR = "--student ./s --teacher ./t --questions"

# What is typed after `opd` -> what the last line on stderr holds.
OPD = {
    "plam": "opd: error: argument COMMAND: invalid choice: 'plam'; did you mean 'plan'?",
    "--configfile my.yaml": "opd: error: argument COMMAND: invalid choice: 'my.yaml' (choose from",
    "plan my.yaml": "opd plan: error: unrecognized arguments: my.yaml; name it with --configfile",
    "plan fig06": "opd plan: error: unrecognized arguments: fig06; name it with --target",
    "plan --configfiel my.yaml": "--configfiel my.yaml; did you mean '--configfile'?",
    "plan --configfile no.yaml": "error: no.yaml: no such config; mend the path, or name another",
    "plan --configfile results/mini/claims/digest.json": "it is no config: --configfile takes all "
    "that follows it; name targets before --configfile",
    "plan --configfile my.yaml --target smal": "no artifact is called 'smal'; did you mean 'small'",
    "plan --configfile my.yaml --target results/x/report.html": "error: --target: results/x/report"
    ".html is of another config, this one is mini; name its files with --configfile",
    "plan --configfile my.yaml --claim E04": "error: --claim: unknown claim 'E04'; there are none",
    "plan --configfile my.yaml --config seeds": "--config: 'seeds' is no setting; write KEY=VALUE",
    "plan --configfile my.yaml --config models.small.init.layers=2": "error: --config: 'models.small"
    ".init.layers=2' is no setting; write 'models={small: {init: {layers: 2}}}'",
    "plan --configfile my.yaml --config nmae=x": "error: nmae: no such key; did you mean 'name'?",
    "plan --configfile my.yaml --gpus 0": "argument --gpus: 0 is not allowed: a whole number from 1",
    "plan --configfile twice.yaml": "twice.yaml: not readable as YAML (line 2: the key 'name' stands",
    "plan --configfile tab.yaml": "tab.yaml: not readable as YAML (while scanning for the next token",
    "plan --configfile list.yaml": "error: list.yaml: not a mapping; write KEY: VALUE",
    "plan --configfile key.yaml": "error: modles: no such key; did you mean 'models'?",
    "plan --configfile seeds.yaml": "error: config: seeds: 0 stands there twice",
    "plan --configfile token.yaml": "error: defaults.init.hidden: it holds a token or a password; put",
    "plan --configfile ref.yaml": "unknown models recipe 'smal'; did you mean 'small'?",
    "plan --configfile target.yaml": "error: targets: unknown figure, table or page 'reprt'; did you",
    "plan --configfile paper.yaml": "error: config: papers need evaluation: the one that their claims are about",
    "plan --configfile data.yaml": "error: prompts.rl.path.file: no such file: ",
    "plan --configfile over.yaml": "error: --configfile: what was given is laid over config/base.yaml, which was not; give config/base.yaml before it",
    "plan --configfile my.yaml --calibration no.yaml": "error: no.yaml: no such file; make it again",
    "lock --configfile no.yaml": "error: no.yaml: no such config; mend the path, or name another",
    "why": "opd why: error: the following arguments are required: path",
    "why headlin": "error: results/mini: no artifact is called 'headlin'; did you mean 'headline'?",
    "why results/mini": "error: results/mini: a folder of results is no artifact; name one in it",
    "why results/min/tables/headline": "error: results/min: no such folder of results; did you mean",
    "why planned": "error: results/mini/models/planned/s0: it has not been made; have snakemake make",
    "why s0": "error: results: 's0' may be results/mini/evaluations/held-out/small-from-large/s0, res",
    "diff results/mini headline": "only results/NAME compare, or artifacts; give two results folders",
    "diff results/mini headlin": "no artifact is called 'headlin'; did you mean 'headline'?",
    "audit results/mni": "error: results/mni: no such folder of results; did you mean 'mini'?",
    "audit results/mini --allow stail": "argument --allow: invalid choice: 'stail'; did you mean 'st",
    "audit results/mini --config a=1": "error: --config: settings of no config; name its files with",
    "export results/mini --out x.tar": "error: --out x.tar: no such archive is written; give a name",
    "export results/mini --out results": "error: results: it is there already; remove it, or name",
    "export headlin --out x.zip": "no artifact is called 'headlin'; did you mean 'headline'?",
    "gc results/mini": "error: results/mini: there is no store in it; it is in results: name that",
    "gc --remove unuzed": "argument --remove: invalid choice: 'unuzed'; did you mean 'unused'?",
    "watch headline": "error: results/mini/tables/headline: it is no training run; name a model that",
    "watch planned": "error: results/mini/models/planned/s0: no run is under way or done here; name",
    "adopt /none --as smal --configfile my.yaml": "error: --as: no artifact is called 'smal'; did you",
    "adopt ./none --as small --configfile my.yaml": "results/mini/models/small/s0: it has been made already; remove this folder first",
    f"preflight {PAIR} q --n 0": "argument --n: 0 is not allowed: a whole number from 1 up",
    "preflight --student small --teacher ./t --questions q": "error: --student: 'small' names no mod",
    f"preflight {PAIR} q": "s: no such folder; ",
    f"preflight {PAIR} q --align": "error: --grader: an alignment needs one; name one, or leave",
    "stage distil": "opd stage: error: argument STAGE: invalid choice: 'distil'; did you mean 'disti",
    "stage table --cfg no.json --output x/digest.json": "error: --cfg no.json: no such file; give set",
    "stage table --cfg { --output x/digest.json": "error: --cfg: not JSON (",
    "rehearse --configfile my.yaml": "error: opd rehearse: no Snakefile in ",
    "claims": "error: config/claims: there is no file of claims; name files, or start it in the fold",
}
# What is typed after `snakemake -n` -> a line of its output.
SNAKEMAKE = {
    "smal": "error: target: no artifact is called 'smal'; did you mean 'small'?",
    "my.yaml": "error: snakemake: my.yaml is a config, no target; snakemake --configfile my.yaml",
    "results/x/report.html": "error: target: results/x/report.html is of another config, this one is",
    "-R small": "error: --forcerun: small is neither a rule nor a file that one makes; write results",
    "--configfile results/mini/claims/digest.json": "it is no config: --configfile takes all that",
    "--configfile key.yaml": "error: modles: no such key; did you mean 'models'?",
    "--configfile file.yaml": "error: results/file: it is a file, where a folder is to be; remove or",
    "--config seeds=[0,0]": "error: config: seeds: 0 stands there twice",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with results, a store and configs, most of which are wrong."""
    folder = tmp_path_factory.mktemp("mistakes")
    results = sample(folder)
    results.add("init", "models/large/s0", {"w": "0"})
    (results.root / "plan.json").write_text(json.dumps({"models/planned/s0": {}}))
    (folder / "results" / ".store").mkdir()
    (folder / "results" / "file").touch()
    (folder / "config").mkdir()
    shutil.copy(ROOT / "config/calibration.yaml", folder / "config")
    for name, text in {"my.yaml": CONFIG, **BAD}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("typed", OPD)
def test_opd_answers_a_mistake_with_one_line(
    typed: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(typed, posix="{" not in typed))
    printed = capsys.readouterr()
    *usage, line = printed.err.splitlines()
    assert ended.value.code == 2 and printed.out == "" and OPD[typed] in line, printed.err
    assert not usage or usage[0].startswith("usage: ")
    assert sorted(place.rglob("*")) == before


def snakemake(place: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and output of dry runs that begin at once."""
    command = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(ROOT / "Snakefile")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OPD_SITE": ""}
    runs = [
        subprocess.Popen(
            [*command, *typed],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for typed in commands
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    return [(run.returncode, output) for run, output in zip(runs, outputs, strict=True)]


@pytest.mark.workflow
def test_snakemake_answers_a_mistake_with_one_line(place: Path) -> None:
    commands = [
        [*shlex.split(typed), *([] if "--configfile" in typed else MINE)] for typed in SNAKEMAKE
    ]
    for typed, (status, output) in zip(SNAKEMAKE, snakemake(place, commands), strict=True):
        lines = [line for line in output.splitlines() if SNAKEMAKE[typed] in line]
        assert len(lines) == 1 and status, f"{typed}: {output}"
        assert "Traceback" not in output and not re.search("Exception|Error:", output), output


@pytest.mark.workflow
def test_what_snakemake_refuses_by_itself_ends_as_the_page_says(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/running.md").read_text()
    table = page.partition("| after `snakemake --cores all` |")[2].partition("\n\n")[0]
    documented = dict(re.findall(r"^\| `(.+?)` \| `(.+?)` \|", table, re.MULTILINE))
    assert len(documented) == len(table.splitlines()) - 2 > 0
    commands = [["--cores", "1", *typed.split()] for typed in documented]
    monkeypatch.chdir(place)
    for typed, (status, output) in zip(documented, snakemake(place, commands), strict=True):
        last = output.strip().splitlines()[-1]
        assert status == 1 and documented[typed] in last, f"{typed}: {output}"
        if typed.startswith("--config"):
            given = typed if "--configfile" in typed else f"--configfile my.yaml {typed}"
            with pytest.raises(SystemExit):
                main(["plan", *given.split()])
            assert re.fullmatch(r"error: .+\n", capsys.readouterr().err)
