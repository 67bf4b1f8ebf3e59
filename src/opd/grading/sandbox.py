"""A process of its own for the comparisons that need a parser of LaTeX and sympy.

Text of a model is never evaluated as code: it is read by math-verify's grammar (ANTLR), and the
``eval`` behind sympy's conversion of strings is taken out. On an answer such as 9^{9^{9^9}} sympy
can run for hours or fill the memory, so the process limits its own CPU time and memory; one that
dies is replaced, one whose parent dies ends. Only these limits are verdicts on an answer: what was
asked of a process that something else has ended is asked once more.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any, NoReturn
from unittest.mock import patch

from opd.core.errors import UserError
from opd.grading.equivalence import AnswerPair

# Of one comparison: CPU seconds and memory that the process may take, wall seconds of waiting. Its
# CPU seconds are up long before, unless the machine gives it no time.
CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
WALL_SECONDS = 30.0
# How often an idle process looks whether its parent lives. The end of its input tells it too, but
# not while a fork of the parent holds the other end.
PARENT_SECONDS = 1.0
ATTEMPTS = 2


class Verifier:
    """Starts the process when it is first asked, and again when it has died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def __call__(self, grader: str, pairs: Sequence[AnswerPair]) -> bool | None:
        """Whether ``COMPARE[grader]`` finds each (given, truth) equal; None at one of the process's
        own limits. Raises ``UserError`` where something else ends the process twice."""
        request = json.dumps([grader, pairs]) + "\n"
        with self.lock:
            for _ in range(ATTEMPTS):
                line, status = self._asked(request)
                if line or status == -signal.SIGPROF:
                    return None if not line else json.loads(line)
        if status is None:
            end = f"gave no answer within {WALL_SECONDS:.0f} s"
        else:
            end = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise UserError(
            f"the process that compares answers {end}, {ATTEMPTS} times in a row",
            "grader",
            "see that the machine has memory and processors left (see `dmesg`), and start it again",
        )

    def _asked(self, request: str) -> tuple[str, int | None]:
        """The answer to a request, and without one the status with which the process ended; None
        where it did not end in time."""
        line, status = "", None
        process = self._running()
        assert process.stdin and process.stdout
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            if select.select([process.stdout], [], [], WALL_SECONDS)[0]:
                line = process.stdout.readline()
                status = None if line else process.wait()
            return line, status
        finally:
            # An answer that comes after an interrupt would be taken for that of the next pair.
            if not line:
                self.stop()

    def _running(self) -> subprocess.Popen[str]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.stop()
        path = os.pathsep.join([place for place in sys.path if place])
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({os.getpid()})"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C is for its parent
        )
        assert self.process.stdout
        if self.process.stdout.readline().strip() != "ready":
            self.stop()
            remedy = "install math-verify; it needs a gigabyte of memory"
            raise UserError("the process that compares answers did not start", "grader", remedy)
        return self.process

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            # Leaving its context closes the pipes, with what it did not read any more, and waits.
            with suppress(OSError), self.process:
                self.process.kill()
            self.process = None


@cache
def verifier(pid: int) -> Verifier:
    """The one of this process: a fork must not share its parent's pipes."""
    return Verifier()


def serve(parent: int) -> None:
    """Answer each line of JSON [grader, pairs] with a JSON boolean, within the limits; with null,
    and for the last time, at that of memory."""
    import logging
    import resource

    logging.disable(logging.CRITICAL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for compare in COMPARE.values():
        compare("(x+1)^{2}", "x^{2}+2x+1")
    forbid_code()
    print("ready", flush=True)
    while os.getppid() == parent:
        if not select.select([sys.stdin], [], [], PARENT_SECONDS)[0]:
            continue
        line = sys.stdin.readline()
        if not line:
            return
        grader, pairs = json.loads(line)
        # The default action of this signal ends the process, wherever it is.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            same = all(COMPARE[grader](given, truth) for given, truth in pairs)
        except MemoryError:
            same = None
        except Exception:
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(same), flush=True)
        if same is None:
            return


def forbid_code() -> None:
    """Take the ``eval`` out of sympy's conversion of strings; numbers are converted without it.

    To be called when sympy has simplified something: its own modules convert strings when loaded.
    """
    from sympy import Expr, Float, Rational
    from sympy.parsing import sympy_parser

    def convert(text: str, *_: Any, **__: Any) -> Expr:
        if fraction := re.fullmatch(r"(\d+)(?:/([1-9]\d*))?", text, re.ASCII):
            return Rational(int(fraction[1]), int(fraction[2] or 1))
        if re.fullmatch(r"\d*\.\d+", text, re.ASCII):
            return Float(text)
        refuse(text)

    def refuse(text: str, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"not evaluated: {text[:80]!r}")

    sympy_parser.parse_expr = convert
    sympy_parser.eval_expr = refuse


def equal_for_sympy(given: str, truth: str, exact: bool = False) -> bool:
    """Whether the difference of two expressions (normalised LaTeX) simplifies to 0; if ``exact``,
    with decimals as the fractions that they stand for."""
    from latex2sympy2_extended import latex2sympy
    from sympy import Expr, simplify

    with decimals_as_fractions() if exact else nullcontext():
        ours, theirs = (latex2sympy(text, normalization_config=None) for text in (given, truth))
    if not isinstance(ours, Expr) or not isinstance(theirs, Expr):
        return False
    return bool(simplify(ours - theirs) == 0)


@contextmanager
def decimals_as_fractions() -> Iterator[None]:
    """Has decimals in LaTeX read as the fractions that they stand for: a sum of floats is rounded
    before anything is compared."""
    import sympy
    from latex2sympy2_extended import latex2sympy2
    from math_verify.parser import parse_latex_cached

    rational = {"Number": sympy.Rational}
    with patch.multiple(sympy, **rational), patch.multiple(latex2sympy2, **rational):
        parse_latex_cached.cache_clear()  # what was read otherwise
        try:
            yield
        finally:
            parse_latex_cached.cache_clear()


def equal_for_math_verify(given: str, truth: str) -> bool:
    """Whether math-verify finds two answers equivalent."""
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(latex: str) -> Any:
        # Its grammar fails on a percent sign, which it reads behind a formula only.
        body = re.sub(r"\s*\\?%$", "", latex)
        formula = f"$\\boxed{{{body}}}$" + "%" * (body != latex)
        return parse(formula, [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)

    return bool(verify(parsed(truth), parsed(given), timeout_seconds=None))


def exactly_equal_for_math_verify(given: str, truth: str) -> bool:
    """Whether math-verify finds two answers equivalent where it rounds nothing: decimals are the
    fractions that they stand for, and what is nearly 0 is not 0."""
    from math_verify import grader
    from sympy import Integer, MatrixBase, simplify

    rounded = grader.sympy_numeric_eq

    def numerically(ours: Any, theirs: Any, *precision: int) -> bool:
        if not rounded(ours, theirs, *precision):
            return False
        integers = all(grader.is_atomic_or_pct_atomic(side, Integer) for side in (ours, theirs))
        # Of integers a % does not count; matrices have been here element by element.
        if integers or isinstance(ours, MatrixBase) or ours == theirs:
            return True
        return (ours.doit() - theirs.doit()).equals(0) is not False

    def symbolically(ours: Any, theirs: Any) -> bool:
        return bool(simplify(ours.doit() - theirs.doit()).is_zero)

    exact = patch.multiple(grader, sympy_numeric_eq=numerically, sympy_symbolic_eq=symbolically)
    with exact, decimals_as_fractions():
        return equal_for_math_verify(given, truth)


COMPARE: dict[str, Callable[[str, str], bool]] = {
    "rule": equal_for_sympy,
    "math_verify": equal_for_math_verify,
    "exact_rule": partial(equal_for_sympy, exact=True),
    "exact_math_verify": exactly_equal_for_math_verify,
}
