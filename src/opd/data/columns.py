"""What the columns of somebody's own file of questions may be called."""

from collections.abc import Iterable

# The likeliest first.
NAMES = {
    "question": ("question", "problem", "prompt", "instruction", "query"),
    "answer": ("answer", "final_answer", "ground_truth", "target", "label"),
}


def known(columns: Iterable[str]) -> dict[str, str]:
    """Which of these columns holds the question, and which the answer, where there is one."""
    there = {*columns}
    present = {field: [name for name in names if name in there] for field, names in NAMES.items()}
    return {field: names[0] for field, names in present.items() if names}


def remedy(field: str) -> str:
    """What to do where no column holds a question or an answer."""
    return f"call the column with the {field}s one of {', '.join(NAMES[field])}"
