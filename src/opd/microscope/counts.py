"""How rollouts of a tree are counted, and where its counts lie. Without numpy, so that a config is
checked at once."""

from typing import Literal

# See ``opd.microscope.path_index.PathIndex.children``.
Counts = Literal["unforced", "whole"]
# What ``counts`` of a tree means: how it is grown, one after the other. An alignment reads the
# counts of the first if it does not say otherwise.
READINGS: dict[str, tuple[Counts, ...]] = {
    "unforced": ("unforced",),
    "whole": ("whole",),
    "both": ("whole", "unforced"),
}


def children_file(counts: Counts | None = None) -> str:
    """The file of a tree's payload with its counts by the first reading, or by a later one."""
    return f"children-{counts}.parquet" if counts else "children.parquet"
