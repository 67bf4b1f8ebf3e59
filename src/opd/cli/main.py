"""On-policy distillation: what a run would need, does and has done."""

import argparse
import errno
import importlib.metadata
import os
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from opd.cli import overview, warm
from opd.cli.commands import init, plan, results, stage, untrained
from opd.cli.commands.options import add_command
from opd.core.errors import UserError
from opd.core.security import Redacting, redacted, visible


def parser() -> tuple[argparse.ArgumentParser, overview.Parsers]:
    """The parser of ``opd``, and those of its commands by name (``add_command``)."""
    top = overview.Parser(
        prog="opd",
        usage="opd [-h] [--version] COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"opd {importlib.metadata.version('opd')}"
    top.add_argument("--version", action="version", version=version, help="print the version")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="opd", help=SUPPRESS
    )
    for group in (init, plan, results, untrained, stage):
        group.add(partial(add_command, commands))
    add_command(
        commands,
        "completion",
        lambda arguments: print(overview.completion(commands.choices)),
        "print a script that completes commands and options in bash",
    )
    overview.add(top, commands.choices)
    return top, commands.choices


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line. What is wrong with it is one line after the usage."""
    top, commands = parser()
    if not argv:
        top.print_help()
        sys.exit(2)
    arguments, unknown = top.parse_known_args(argv)
    if unknown:
        command = commands[arguments.command]
        hint = overview.misplaced(unknown[0], overview.options_of(command))
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run one command; a ``UserError`` ends with its one line on stderr and exit status 2."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own
        if not isinstance(sys.stderr, Redacting):  # a fork has it already
            sys.stderr = Redacting(sys.stderr)
        # Libraries may ask whether to run a model's own code: there is nobody who says yes.
        sys.stdin = open(os.devnull)  # noqa: SIM115
    warm.settle_threads()
    # A stage that is told to stop clears its unfinished work away, as after an error.
    signal.signal(signal.SIGTERM, _told)
    try:
        if not arguments.online(arguments):
            os.environ["HF_HUB_OFFLINE"] = "1"
        if status := arguments.run(arguments):
            sys.exit(status)
    except UserError as bad:
        _fail(bad)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, start again", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as from `opd watch FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        place = getattr(arguments, "store", f"opd {arguments.command}")
        shortage = _shortage(error, str(place))
        if shortage is None:
            raise
        _fail(shortage)


def _fail(bad: UserError) -> NoReturn:
    print(f"error: {visible(redacted(str(bad)))}", file=sys.stderr)
    sys.exit(2)


def _told(*_: Any) -> NoReturn:
    # A handler may run in the middle of a print.
    os.write(2, b"told to stop: what was finished is kept, start again\n")
    sys.exit(143)


def _shortage(error: Exception, place: str) -> UserError | None:
    """What a user can mend of the errors that libraries raise: disk, rights, memory, templates.
    ``place`` is where, if they do not name a file."""
    number, text = getattr(error, "errno", None), str(error)
    where = str(getattr(error, "filename", None) or place)
    # What is written in Rust or C++ tells a full disk in words only.
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text:
        reason = os.strerror(number or errno.ENOSPC)
        return UserError(f"no room ({reason})", where, "free space, start again")
    if "No usable temporary directory" in text:
        reason = "no room for temporary files, or no right"
        return UserError(reason, "TMPDIR", "free space, start again")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "have it made accessible (writable, if it is a result), start again"
        return UserError(f"not allowed ({os.strerror(number)})", where, remedy)
    if type(error).__module__ == "jinja2.exceptions":  # of a model: ours are tested
        remedy = "see what the chat template asks for (system messages, options), and give it that"
        return UserError(f"a chat template cannot be used ({text})", where, remedy)
    # Of torch only the name is known here: it is not imported for this.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in text:
        first = text.splitlines()[0] if text else "out of it"
        remedy = "give the job more memory or the stage less at a time (batch_size, micro_batch)"
        return UserError(f"memory does not suffice ({first})", where, remedy)
    return None
