"""The page of coloured rollouts in a browser, on a desk and on a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LONG, SIZES, chromium
from scripts import without_script

from opd.microscope.page import page


def token(depth: int, text: str, score: float | None, width: float | None, **more: Any) -> Any:
    children = [
        {"token": 1, "text": text, "student": 0.6, "teacher": 0.8, "visits": 90, "successes": 81},
        {"token": 2, "text": "<b>", "student": 0.3, "teacher": 0.1, "visits": 0, "successes": 0},
    ]
    return {
        "prompt_id": "q1", "path": 0, "correct": True, "depth": depth, "token": 1, "text": text,
        "alignment": score, "range": width, "advantage": None if width is None else -0.02,
        "scored_children": 2, "kl_nats": 0.25, "children": children, **more,
    }  # fmt: skip


TOKENS = [
    token(0, "So", 1.0, 0.8),
    token(1, " <i>", -0.5, 0.1),
    token(2, "\n", None, None),
    token(3, " ", None, 0.3),
    token(4, LONG, None, None),
    *(token(depth, f" word{depth}", None, None) for depth in range(5, 90)),
    token(0, "No", -1.0, 1.0, path=1, correct=False),
]
QUESTIONS = {"q1": {"question": f"Why? {LONG} <script>alert(1)</script>", "answer": "4"}}
LEFT_OUT = [{"prompt_id": "q2", "path": None, "reason": f"none of 60 rollouts is correct {LONG}"}]


def html() -> str:
    return page("Where it points", TOKENS, QUESTIONS, LEFT_OUT, 5)


def test_the_page_says_what_is_known_of_a_token() -> None:
    text = " ".join(without_script(html()).split())
    assert "Rollout 1, right: mean alignment +0.25 over 2 of 90 tokens" in text
    assert "Rollout 2, wrong: mean alignment −1.00 over 1 of 1 tokens" in text
    said = (
        "Token 1: alignment +1.00, success range 0.80, teacher advantage −0.020, 2 choices scored."
    )
    assert said in text
    assert "Token 4: alignment none (the teacher is as the student)" in text
    assert "Token 3: not scored" in text
    assert "90 % of 90" in text and "never taken" in text
    # What models write is text, and nothing is loaded or run.
    assert "<script" not in text and "&lt;i&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    # Towards and away in their colours, as strong as the score; the line as thick as the range.
    assert "var(--toward) 75%, transparent); border-bottom-width: 5px" in text
    assert "var(--away) 45%, transparent); border-bottom-width: 2px" in text


def test_only_so_many_questions_are_shown() -> None:
    rows = [token(0, "a", 1.0, 0.5, prompt_id=f"q{n}") for n in range(4)]
    known = {f"q{n}": {"question": "?", "answer": "1"} for n in range(4)}
    text = page("t", rows, known, [], 3)
    assert (
        "<h2>q2</h2>" in text
        and "<h2>q3</h2>" not in text
        and "tokens.parquet has 1 more question." in text
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("size", SIZES)
def test_hovering_and_tapping_show_what_is_known(size: str, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(html(), encoding="utf-8")
    width, height = SIZES[size]
    view = browser.new_page(viewport={"width": width, "height": height})
    wrong: list[str] = []
    view.on("console", lambda message: wrong.append(message.text))
    view.goto(file.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    tokens = view.locator(".rollout > b")
    tips = view.locator(".tip:visible")
    assert tips.count() == 0
    tokens.nth(0).hover()
    assert tips.count() == 1 and "alignment +1.00" in tips.inner_text()
    # A tap keeps it; pointing elsewhere goes before it.
    tokens.nth(1).click()
    view.mouse.move(1, 1)
    assert tips.count() == 1 and "alignment −0.50" in tips.inner_text()
    tokens.nth(0).hover()
    assert tips.count() == 1 and "alignment +1.00" in tips.inner_text()
    # With the keyboard, too; what shows is on the screen, and the last token is not hidden by it.
    view.mouse.move(1, 1)
    tokens.nth(0).focus()
    view.keyboard.press("Tab")
    assert "alignment −0.50" in tips.inner_text()
    box = tips.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width + 1
    assert box["y"] + box["height"] <= height + 1 and box["height"] < height / 2
    last = tokens.nth(tokens.count() - 1)
    last.scroll_into_view_if_needed()
    last.focus()
    view.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert last.bounding_box()["y"] + 20 < tips.bounding_box()["y"]
    # Two colours, and none where nothing was scored.
    colour = "e => getComputedStyle(e).backgroundColor"
    first, second, bare = (tokens.nth(i).evaluate(colour) for i in (0, 1, 4))
    assert len({first, second, bare}) == 3 and bare == "rgba(0, 0, 0, 0)"
    assert wrong == []
    view.close()
