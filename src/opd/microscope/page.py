"""A student's rollouts coloured by where a teacher points: one HTML file to read and to hover over,
without a script."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from opd.core.html import render

Row = Mapping[str, Any]
QUESTION_CHARACTERS = 600

_PAGE = """\
{% extends "base" %}
{% block style %}
:root { --toward: light-dark(#2f79c9, #5aa0f0); --away: light-dark(#d66c10, #f09646);
  --none: light-dark(#e4e4e0, #3a3a3a); }
body { padding-bottom: 14rem; }
.rollout { font: 1rem/2.1 ui-monospace, monospace; white-space: pre-wrap; margin: .3rem 0 1.2rem; }
.rollout > b { font-weight: 400; border-radius: .2rem; padding: .15rem .06rem; cursor: help;
  border-bottom: 0 solid; }
.rollout > b:is(:hover, :focus) { outline: 2px solid var(--link); outline-offset: 0; }
.tip { display: none; position: fixed; inset: auto 0 0 0; max-height: 13rem; overflow: auto;
  background: Canvas; border-top: 2px solid var(--link); padding: .4rem 1rem; cursor: auto;
  font: .85rem/1.4 system-ui, sans-serif; white-space: normal; z-index: 2; }
.rollout > b:is(:hover, :focus) > .tip { display: block; }
/* What is pointed at goes before what was chosen earlier. */
body:has(.rollout > b:hover) .rollout > b:focus:not(:hover) > .tip { display: none; }
.tip > span { display: grid; grid-template-columns: repeat(3, max-content) 1fr; gap: 0 1.2rem;
  margin-top: .3rem; font-variant-numeric: tabular-nums; }
.tip code { white-space: pre; }
.tip i { font-style: normal; color: var(--faint); }
.key span { display: inline-block; padding: 0 .5rem; margin: 0 .8rem .4rem 0;
  border-radius: .2rem; border-bottom: 0 solid; }
.question { color: var(--faint); white-space: pre-wrap; }
@media print { .tip { display: none !important; } body { padding-bottom: 0; } }
{% endblock %}
{% block body %}
<p>Every token of the student's rollouts is coloured by its <em>alignment</em>: whether the
teacher's gradient there moves the student towards a correct answer (1) or away from it (−1). The
line below a token is as thick as the success range: how much the choice there matters. Tokens
without colour could not be scored. Point at a token, tap it, or go through them with the tab key:
what is known of it shows at the bottom.</p>
<p class="key">
{% for style, text in key %}
<span style="{{ style }}">{{ text }}</span>
{% endfor %}
</p>
{% for question in questions %}
<section><h2>{{ question.id }}</h2>
<p class="question">{{ question.text }}
Answer: {{ question.answer }}</p>
{% for path in question.paths %}
<h3>{{ path.head }}</h3>
<div class="rollout">
{%- for token in path.tokens -%}
<b tabindex="0" style="{{ token.style }}">{{ token.text -}}
<span class="tip" role="tooltip">{{ token.said -}}
<span><i>choice</i><i>teacher</i><i>student</i><i>right after it</i>
{%- for child in token.children -%}
<code>{{ child[0] }}</code>{% for cell in child[1:] %}<span>{{ cell }}</span>{% endfor %}
{%- endfor -%}
</span></span></b>{{ token.after }}
{%- endfor -%}
</div>
{% endfor %}
</section>
{% endfor %}
{% if more %}<p>{{ more }} more questions are in tokens.parquet.</p>{% endif %}
{% if left_out %}
<h2>What could not be measured</h2>
{{ table(["question", "rollout", "why"], left_out, "left out", text=True) }}
{% endif %}
{% endblock %}
"""


def page(
    title: str,
    rows: Sequence[Row],
    questions: Mapping[str, Row],
    left_out: Iterable[Row],
    most: int,
) -> str:
    """The page of one teacher: rows of TOKENS, question by question and path by path; questions:
    rows of QUESTIONS by id; left_out: rows of LEFT_OUT; most: how many questions are shown."""
    by_question = [(id, list(of)) for id, of in groupby(rows, key=lambda row: row["prompt_id"])]
    shown = []
    for id, of in by_question[:most]:
        text = questions[id]["question"]
        cut = len(text) > QUESTION_CHARACTERS
        shown.append(
            {
                "id": id,
                "text": f"{text[:QUESTION_CHARACTERS]} …" if cut else text,
                "answer": questions[id]["answer"],
                "paths": [_path(list(one)) for _, one in groupby(of, key=lambda r: r["path"])],
            }
        )
    excuses = [
        (one["prompt_id"], "all" if one["path"] is None else one["path"] + 1, one["reason"])
        for one in left_out
    ]
    key = [
        (_background("toward", 1), "towards"),
        (_background("away", 1), "away"),
        ("background: var(--none)", "scored, no direction"),
        ("border-bottom-width: 5px", "the choice matters"),
    ]
    more = max(0, len(by_question) - most)
    return render(_PAGE, title, questions=shown, more=more, left_out=excuses, key=key)


def _path(tokens: Sequence[Row]) -> dict[str, Any]:
    scores = [one["alignment"] for one in tokens if one["alignment"] is not None]
    kind = "right" if tokens[0]["correct"] else "wrong"
    head = f"Rollout {tokens[0]['path'] + 1}, {kind}: "
    if scores:
        mean = number(sum(scores) / len(scores), "+.2f")
        head += f"mean alignment {mean} over {len(scores)} of {len(tokens)} tokens"
    else:
        head += f"none of {len(tokens)} tokens has a direction"
    return {"head": head, "tokens": [_token(one) for one in tokens]}


def _token(one: Row) -> dict[str, Any]:
    text = one["text"]
    visible = text.replace("\n", "↵")
    score, width = one["alignment"], one["range"]
    style = ""
    if width is not None:
        style = "background: var(--none)"
        if score is not None and score != 0:
            side = "toward" if score > 0 else "away"
            style = _background(side, abs(score))
        style += f"; border-bottom-width: {1 + 5 * width:.0f}px"
    said = f"Token {one['depth'] + 1}: "
    if width is None:
        said += "not scored (too few rollouts after two choices, or none matters)."
    else:
        what = "none (the teacher is as the student)" if score is None else number(score, "+.2f")
        said += (
            f"alignment {what}, success range {number(width, '.2f')}, teacher advantage "
            f"{number(one['advantage'], '+.3f')}, {one['scored_children']} choices scored."
        )
    said += f" KL {number(one['kl_nats'], '.3f')} nats."
    return {
        "text": visible if visible.strip() else visible.replace(" ", "␣") or "∅",
        "after": "\n" * text.count("\n"),
        "style": style,
        "said": said,
        "children": [
            (
                repr(child["text"])[1:-1] or "∅",
                f"{100 * child['teacher']:.1f} %",
                f"{100 * child['student']:.1f} %",
                f"{100 * child['successes'] / child['visits']:.0f} % of {child['visits']}"
                if child["visits"]
                else "never taken",
            )
            for child in one["children"]
        ],
    }


def _background(side: str, strength: float) -> str:
    return f"background: color-mix(in srgb, var(--{side}) {15 + 60 * strength:.0f}%, transparent)"


def number(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return f"{value:{form}}".replace("-", "−")
