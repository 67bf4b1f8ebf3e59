"""The code of a stage, as it counts in the identity of what the stage makes."""

from functools import cache

from opd.core.code import module_digest, own_digests
from opd.core.files import digest
from opd.stages.registry import VERBS


@cache
def code_digest(verb: str) -> str:
    """Digest of the code of a stage: that of its module, and which of its functions is called."""
    module, _, function = VERBS[verb].partition(":")
    return digest([module_digest(module), function])


def modules(verb: str) -> dict[str, str]:
    """Module -> digest of its own code, of all that ``code_digest`` covers: what tells which of
    them has changed."""
    return own_digests(VERBS[verb].partition(":")[0])
