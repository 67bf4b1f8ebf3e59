"""Answer extraction and equivalence.

A grader maps (response, answer) to (what was extracted or None, whether it is right). ``world``
reads the miniature world's notation, ``math`` the last ``\\boxed{}``: equal as strings after
normalisation, else equal as numbers, else equivalent for math-verify.
"""

import json
import math
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from opd.errors import Bad

Graded = tuple[str | None, bool]

# CPU seconds that math-verify may spend on one comparison, and wall seconds that the caller waits.
CPU_SECONDS = 5.0
WALL_SECONDS = 60.0
MEMORY_BYTES = 4 << 30
# math-verify is not asked about longer answers: they are prose or repetition.
LONGEST_CHARS = 400


def grade_world(response: str, answer: str) -> Graded:
    """The miniature world's own grader."""
    from opd.world import grade

    return grade(response, answer)


def grade_math(response: str, answer: str) -> Graded:
    """The last ``\\boxed{}`` of a response against a ground truth (itself boxed or bare)."""
    return grade_all([(response, answer)], "math")[0][0]


GRADERS: dict[str, Callable[[str, str], Graded]] = {"world": grade_world, "math": grade_math}


def grade_all(pairs: Sequence[tuple[str, str]], grader: str) -> tuple[list[Graded], int]:
    """Grade (response, answer) pairs in order; also how many comparisons hit the time limit.

    A comparison at the limit counts as wrong. Raises ``Bad`` for an unknown grader.
    """
    if grader not in GRADERS:
        raise Bad(f"unknown grader '{grader}'", "grader", f"use one of {', '.join(GRADERS)}")
    if grader != "math":
        return [GRADERS[grader](response, answer) for response, answer in pairs], 0
    graded: list[Graded] = []
    verdicts: dict[tuple[str, str], bool | None] = {}
    for response, answer in pairs:
        extracted = last_boxed(response)
        if extracted is None:
            graded.append((None, False))
            continue
        truth = last_boxed(answer) or answer
        key = (extracted, truth)
        if key not in verdicts:
            known = same_answer(extracted, truth)
            if known is None:
                verdicts[key] = _verifier(os.getpid())(extracted, truth)
            else:
                verdicts[key] = known
        graded.append((extracted, bool(verdicts[key])))
    return graded, sum(verdict is None for verdict in verdicts.values())


def last_boxed(text: str) -> str | None:
    """Contents of the last ``\\boxed{...}``, with balanced braces.

    None where there is none, where it is empty, or where the text ends before it closes.
    """
    start = text.rfind("\\boxed")
    opening = re.compile(r"\\boxed\s*\{").match(text, start) if start >= 0 else None
    if opening is None:
        return None
    depth = 1
    for end in range(opening.end(), len(text)):
        if text[end - 1] == "\\" and text[end - 2 : end] != "\\\\":
            continue
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[opening.end() : end].strip() or None
    return None


def normalise(answer: str) -> str:
    """Remove what does not change a LaTeX answer: spacing, sizes, units, degree, thousands commas.

    The list follows the rules usual for MATH (Hendrycks et al. 2021), written anew.
    """
    text = answer.strip().strip("$").strip()
    text = re.sub(r"\\(left|right|bigg?|Bigg?)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[!,;: ]|~|\\q?quad(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\^\s*(\{\s*\\circ\s*\}|\\circ)|\\degree", "", text)
    text = text.replace("\\$", "").replace("\\%", "").replace("%", "").replace("$", "")
    # A unit after a number goes; text that is all there is stays, bare.
    text = re.sub(r"(?<=[\d}])\s*\\(text|mathrm|mbox)\s*\{[^{}]*\}\s*(\^\s*\{?\d\}?)?$", "", text)
    text = re.sub(r"\\(text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\2", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    return re.sub(r"(?<!\d)\.(?=\d)", "0.", text)


def same_answer(extracted: str, truth: str) -> bool | None:
    """Whether two answers are equal as strings or numbers; None where that does not settle it."""
    ours, theirs = normalise(extracted), normalise(truth)
    if ours == theirs:
        return bool(ours)
    a, b = _number(ours), _number(theirs)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    if not ours or not theirs or len(ours) > LONGEST_CHARS:
        return False
    return None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[-+]?\d{1,300}(\.\d+)?", text) else None


class _Verifier:
    """math-verify in a process of its own, started when first needed, ended with this one.

    Its sympy can run for hours or fill the memory on an answer such as 9^{9^{9^9}}, and its own
    time limit is an alarm signal that works in a main thread only. So the process limits its own
    CPU time and memory, and one that dies is replaced.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, extracted: str, truth: str) -> bool | None:
        """Whether math-verify finds two answers equivalent; None at the limit."""
        process = self.process or self._start()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([extracted, truth]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], WALL_SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self._stop()
            return None
        return bool(json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from opd.grading import serve; serve()"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        if self.process.stdout.readline().strip() != "ready":
            self._stop()
            raise Bad(
                "the math-verify process did not start", "grader: math", "install math-verify"
            )
        return self.process

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


@cache
def _verifier(pid: int) -> _Verifier:
    """The one of this process: a fork must not share its parent's pipe."""
    return _Verifier()


def serve() -> None:
    """Answer lines of JSON [extracted, truth] with lines of JSON booleans, within the limits."""
    import logging
    import resource

    from math_verify import parse, verify

    def parsed(latex: str) -> Any:
        return parse(f"${latex}$", parsing_timeout=None)

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    verify(parsed("\\frac{1}{2}"), parsed("0.5"), timeout_seconds=None)
    print("ready", flush=True)
    for line in sys.stdin:
        extracted, truth = json.loads(line)
        # The default action of this signal ends the process, wherever it is.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            same = bool(verify(parsed(truth), parsed(extracted), timeout_seconds=None))
        except Exception:
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(same), flush=True)
