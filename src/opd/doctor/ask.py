"""Asking other programs, none of which may keep the asker waiting."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """``code`` is None where the program did not start (``err`` says why) or did not end in time
    (``err`` is empty)."""

    code: int | None
    out: str
    err: str


def ask(command: Sequence[str], seconds: float) -> Answer:
    """Run a program and whatever it starts, for so many seconds at most."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    pipes |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        process = subprocess.Popen(command, **pipes, errors="replace", start_new_session=True)
    except OSError as error:
        return Answer(None, "", error.strerror or str(error))
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # Its children hold the pipes: without them gone, nobody would ever read to the end.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Answer(None, "", "")
    return Answer(process.returncode, out, err)
