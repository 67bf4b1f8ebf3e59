"""What is asked, word for word, and who answers right."""

import pytest

from opd.core.errors import UserError
from opd.microscope import contexts

MMLU = (
    "Answer the following multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think "
    "step by step before answering.\n\nWhat is it?\n\nA) one\nB) two\nC) three\nD) four"
)


def test_the_papers_words() -> None:
    """Figs. 12 to 15, typed off anew."""
    assert contexts.SYSTEM == "You are a helpful assistant."
    assert contexts.with_demonstrations(MMLU, ["It is B."]) == (
        MMLU + "\n\nThis is a correct response to the question:\n"
        '"""\nIt is B.\n"""\n\n'
        "Now answer with a response of your own, including the thinking process:"
    )
    assert contexts.with_demonstrations(MMLU, ["It is B."], ["It is C."]) == (
        MMLU + "\n\nBelow are example responses to the question. Some are CORRECT and some are "
        "WRONG -- the wrong responses contain mistakes and should NOT be imitated.\n\n"
        'Correct:\n"""\nIt is B.\n"""\n\n'
        'WRONG (do NOT imitate):\n"""\nIt is C.\n"""\n\n'
        "Now answer with a response of your own, including the thinking process:"
    )
    three = contexts.with_demonstrations("Q", ["x", "y", "z"])
    assert three.count('"""') == 6 and three.index("x") < three.index("y") < three.index("z")
    assert contexts.with_demonstrations(MMLU, []) == MMLU


def test_a_question_as_the_loaders_make_it_takes_the_papers_form() -> None:
    loaded = "What is it?\nA. one\nB. two\nC. three\nD. four"
    assert contexts.asked("mmlu", loaded, "other") == MMLU
    assert contexts.asked(None, loaded, "other") == "other"
    found = contexts.asked("boolq", "Water is wet.\nIt flows.\nQuestion: is water wet?", "")
    assert found.startswith("Water is wet.\nIt flows.\n\nis water wet?\n\nThe last line")
    with pytest.raises(UserError, match="no question of mmlu"):
        contexts.asked("mmlu", "What is it?\nA. one\nB. two\nC. three", "")
    with pytest.raises(UserError, match="unknown form 'gsm'"):
        contexts.asked("gsm", "What is it?", "")


def test_a_teacher_without_its_demonstrations_is_not_asked() -> None:
    found = {"q": {True: ["good", "better"], False: []}}
    assert "good" in contexts.teacher_asked("q", "Q", found, 1, 0)
    assert "better" not in contexts.teacher_asked("q", "Q", found, 1, 0)
    with pytest.raises(UserError, match="0 of 1 wrong demonstrations"):
        contexts.teacher_asked("q", "Q", found, 1, 1)
    with pytest.raises(UserError, match="prompt 'r': 0 of 1 correct"):
        contexts.teacher_asked("r", "Q", found, 1, 0)


def test_the_summariser() -> None:
    asked = contexts.summary_request(contexts.SUMMARISE, "2+2?", "It is {4}.")
    assert "2+2?" in asked and "It is {4}." in asked
    with pytest.raises(UserError, match="it has no"):
        contexts.summary_request("Summarise.", "Q", "R")
