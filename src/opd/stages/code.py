"""What the registry knows of a stage that becomes part of an identity: its code and its random
state. Apart from ``opd.stages.identity``, which stages read: none may import the registry."""

import hashlib
from functools import cache

from opd.core.code import module_digest, own_digests
from opd.core.files import digest
from opd.stages.registry import STAGES


def derive_seed(seed: int, stage: str) -> int:
    """The random seed of a stage: a pure function of the run's seed and the stage's random name."""
    name = STAGES[stage].random_name or stage
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


@cache
def code_digest(stage: str) -> str:
    """Digest of the code of a stage: that of its module, and which of its functions is called."""
    module, _, function = STAGES[stage].run.partition(":")
    return digest([module_digest(module), function])


def modules(stage: str) -> dict[str, str]:
    """Module -> digest of its own code, of all that ``code_digest`` covers: what tells which of
    them has changed."""
    return own_digests(STAGES[stage].run.partition(":")[0])
