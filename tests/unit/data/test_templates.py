"""Templates: to the byte as published, and taken off as they were put on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.core.errors import UserError
from opd.data import templates

# Written down a second time, so that a slip in either is seen.
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nQ"
    '\n\nRemember to put your answer on its own line after "Answer:".'
)
BOXED = r"Q Please reason step by step, and put your final answer within \boxed{}."
DOUBLE = r"Q Please reason step by step, and put your final answer within \boxed{{}}."
PARAGRAPH = "Q\n\nPlease reason step by step, and put your final answer within \\boxed{}."


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("dapo", DAPO),
        ("boxed", BOXED),
        ("boxed_double_brace", DOUBLE),
        ("boxed_paragraph", PARAGRAPH),
    ],
)
def test_named_templates_are_those_of_the_papers(name: str, prompt: str) -> None:
    assert templates.apply(name, "Q") == prompt
    assert templates.unwrap(prompt, name) == ("Q", "exact")


def test_only_the_question_is_replaced() -> None:
    text = templates.apply("boxed", "What is {x} in {question}?")
    assert text.startswith("What is {x} in {question}? Please") and text.endswith("\\boxed{}.")
    assert templates.apply("{question} in \\boxed{{}}.", "q") == "q in \\boxed{{}}."
    with pytest.raises(UserError, match=r"the template has no \{question\}: 'no place'"):
        templates.apply("no place", "q")


WHITE = st.sampled_from(["", " ", "\n", "\t ", "\u3000", "\r\n\n", "\x1f"])
QUESTIONS = st.one_of(
    st.text(),
    st.builds("{}{}{}".format, WHITE, st.text(), WHITE),
    st.sampled_from([*templates.TEMPLATES.values(), "{question}", "\\boxed{}.", DAPO, BOXED]),
)
AFFIXES = st.one_of(
    st.sampled_from(sorted(templates.TEMPLATES)),
    st.builds("{}{{question}}{}".format, st.text(), st.text()).filter(
        lambda t: t.count("{question}") == 1
    ),
)


@given(QUESTIONS, AFFIXES)
def test_unwrap_undoes_apply(question: str, template: str) -> None:
    prompt = templates.apply(template, question)
    assert templates.unwrap(prompt, template) == (question, "exact")


@given(QUESTIONS, AFFIXES, WHITE, WHITE)
def test_white_space_around_a_prompt_does_not_matter(
    question: str, template: str, before: str, after: str
) -> None:
    prompt = before + templates.apply(template, question) + after
    assert templates.unwrap(prompt, template)[0].strip() == question.strip()


@pytest.mark.parametrize(
    ("affix", "text", "inner", "how"),
    [
        ("dapo", DAPO, "Q", "exact"),
        ("dapo", DAPO.removesuffix('"Answer:".'), None, None),
        ("boxed", f"{BOXED} ", "Q ", "loose"),
        ("boxed", BOXED.replace("Q ", "Q\n"), "Q\n", "loose"),  # as in G-OPD's level-6 file
        ("boxed", DOUBLE, None, None),
        ("boxed_double_brace", BOXED, None, None),
        ("boxed", BOXED.replace("Q", " Q "), " Q ", "exact"),
        ("Question: ", "Question: q", "q", "exact"),
        (" please.", "q please.", "q", "exact"),
        (" please.", "q please. r", None, None),
        ("ab{question}ba", "aba", None, None),
        ("ab{question}ba", "abba", "", "exact"),
    ],
)
def test_unwrap(affix: str, text: str, inner: str | None, how: str | None) -> None:
    assert templates.unwrap(text, affix) == (text if inner is None else inner, how)
