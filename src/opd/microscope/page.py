"""A student's rollouts coloured by where a teacher points: one HTML file to read and to hover over,
without a script."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from opd.core.code import package_file
from opd.core.html import render

Row = Mapping[str, Any]
QUESTION_CHARACTERS = 600


def page(
    title: str,
    rows: Sequence[Row],
    questions: Mapping[str, Row],
    left_out: Iterable[Row],
    most: int,
) -> str:
    """The page of one teacher: rows of TOKENS, question by question and path by path; questions:
    rows of QUESTIONS by id; left_out: rows of LEFT_OUT; most: how many questions are shown."""
    by_question = [(id, [*tokens]) for id, tokens in groupby(rows, key=itemgetter("prompt_id"))]
    shown = []
    for id, tokens in by_question[:most]:
        text = questions[id]["question"]
        cut = f"{text[:QUESTION_CHARACTERS]} …" if len(text) > QUESTION_CHARACTERS else text
        paths = [[*path] for _, path in groupby(tokens, key=itemgetter("path"))]
        shown.append({"id": id, "text": cut, "answer": questions[id]["answer"], "paths": paths})
    return render(
        package_file(__file__, "pages"),
        "rollouts.html.j2",
        title=title,
        questions=shown,
        more=max(0, len(by_question) - most),
        left_out=[*left_out],
    )
