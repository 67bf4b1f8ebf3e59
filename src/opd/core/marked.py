"""Whether this process is part of a rehearsal (``opd.rehearsal``): what it shows is marked then."""

import os

VARIABLE = "OPD_REHEARSAL"
MARK = "A rehearsal with stand-ins for models and data: no number here means anything."


def mark() -> str:
    """What pages and figures of this process say of themselves; nothing outside a rehearsal."""
    return MARK if os.environ.get(VARIABLE) else ""
