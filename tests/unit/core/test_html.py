"""Pages: values are escaped, and a template names no value that it is not given."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from opd.core.html import anchor, many, number, render


def shown(folder: Path, template: str, name: str = "page.html.j2", **values: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(template)
    return render(folder, name, **values)


def test_values_are_escaped_also_in_shared_parts_and_controls_are_spelt_out(tmp_path: Path) -> None:
    page = """{% extends "base.html.j2" %}{% from "table.html.j2" import table %}
    {% block body %}{{ table([text], [[text, text]], name=text) }}{% endblock %}"""
    html = shown(tmp_path, page, title="<b>\x07", text='<i>"')
    assert html.count("&lt;b&gt;⟨U+0007⟩") == 2 and html.count("&lt;i&gt;&#34;") == 4
    assert "<b>" not in html and "<i>" not in html


def test_markdown_says_itself_that_it_is_not_escaped(tmp_path: Path) -> None:
    text = "{% autoescape false %}{{ text }}\n{% endautoescape %}"
    assert shown(tmp_path, text, "page.md.j2", text="a < b\x1b") == "a < b⟨U+001B⟩\n"


def test_a_value_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="absent"):
        shown(tmp_path, "{{ absent }}")


def test_folders_do_not_see_each_other(tmp_path: Path) -> None:
    assert [shown(tmp_path / name, name) for name in ("a", "b")] == ["a", "b"]


def test_words_around_values() -> None:
    assert number(-0.125, "+.2f") == "−0.12" and number(None, ".1f") == "–"
    assert (many(1, "claim"), many(0, "claim")) == ("1 claim", "0 claims")
    assert anchor('figure:a paper/fig"6') == "figure:a%20paper/fig%226"
