"""The help of ``opd``: its commands by when they are called, with an example of each; what was
meant by a word that it does not know; completion for bash."""

import argparse
import re
from collections.abc import Mapping
from typing import NoReturn

from opd.core.text import suggestion

Parsers = Mapping[str, argparse.ArgumentParser]
PAIR = "--student ORG/SMALL --teacher ORG/LARGE --questions questions.jsonl"
# When it is called -> command -> an example, without `opd COMMAND` before it.
COMMANDS = {
    "before a run": {
        "init": f"{PAIR} --out my.yaml",
        "doctor": "--configfile my.yaml",
        "plan": "--configfile my.yaml --target report",
        "lock": "--configfile my.yaml",
        "preflight": f"{PAIR} --grader math_verify --out preflight",
        "align": f"{PAIR} --grader math_verify --out align",
        "rehearse": "--configfile config/paper.yaml -- -n",
    },
    "during a run, and after it": {
        "watch": "results/mini/models/small-from-small-rl/s0",
        "why": "results/mini/tables/headline.csv",
        "diff": "results/mini results/mine",
        "audit": "results/mini --strict",
        "export": "results/mini --out mini.zip --target fig05",
        "adopt": "models/teacher --as large-rl/s0 --configfile config/mini.yaml",
        "gc": "results --remove unused",
    },
    "for whoever changes things": {
        "schema": "> workflow/schemas/config.schema.json",
        "claims": "--check config/claims/rethinking_opd.yaml",
        "calibrate": "results/mini --out results/calibration.yaml",
        "stage": "table --cfg results/mini/tables/headline/manifest.json --input FILES"
        " --output again/digest.json",
        "completion": '> ~/.opd-completion; echo ". ~/.opd-completion" >> ~/.bashrc',
    },
}
LAST = """a run itself: snakemake --cores all --configfile my.yaml
options and an example of a command: opd COMMAND --help"""


def add(top: argparse.ArgumentParser, parsers: Parsers) -> None:
    """Give each command its example, and the whole a list of them by when they are called."""
    lines = []
    for title, examples in COMMANDS.items():
        lines += [f"{title}:"]
        for name, example in examples.items():
            if parser := parsers.get(name):
                parser.epilog = f"example:\n  opd {name} {example}"
                lines.append(f"  {name:<12}{parser.description}")
        lines.append("")
    top.epilog = "\n".join([*lines, LAST])


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a command, as its help lists them."""
    return re.findall(r"^  (?:-\w, )?(--[\w-]+)", parser.format_help(), re.MULTILINE)


class Parser(argparse.ArgumentParser):
    """A parser that says what was meant by a word that is no choice of an argument."""

    def error(self, message: str) -> NoReturn:
        wrong = re.fullmatch(r"(.*'(.*)') \(choose from (.*)\)", message)
        if wrong and (hint := meant(wrong[2], re.findall(r"'(.*?)'", wrong[3]))):
            message = f"{wrong[1]}{hint}"
        super().error(message)


def meant(word: str, known: list[str]) -> str:
    """A hint at what was meant by a word, if anything is like it."""
    hint = suggestion(word, known)
    return f"; {hint}" if hint.startswith("did you mean") else ""


def misplaced(word: str, known: list[str]) -> str:
    """A hint at what was meant by a word that a command with these options does not take."""
    if word.startswith("-"):
        return meant(word.partition("=")[0], known)
    option = "--configfile" if word.endswith((".yaml", ".yml")) else "--target"
    return f"; name it with {option}" if option in known else ""


def completion(parsers: Parsers) -> str:
    """A script for bash that completes commands, their options, and files."""
    cases = "\n".join(
        f"    {name}) words='{' '.join(options_of(parser))}' ;;" for name, parser in parsers.items()
    )
    return f"""# Completion of opd for bash.
_opd() {{
  local words='{" ".join(parsers)}'
  [ "$COMP_CWORD" -gt 1 ] && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _opd opd"""
