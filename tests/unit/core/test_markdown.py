"""Markdown reports: lines that are wrapped, tables that are aligned, names that must be there."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from opd.core.markdown import render


def test_a_template_with_its_filters(tmp_path: Path) -> None:
    template = tmp_path / "report.md.jinja"
    template.write_text(
        "# {{ title }}\n\n{% for item in items %}\n{{ item | wrapped('- ') }}\n{% endfor %}\n"
        "{{ rows | table }}\n"
    )
    rows = [["a", "long"], ["b & c", "1"]]
    text = render(template, title="<T>", items=["x " * 50, "a-b"], rows=rows)
    assert text == (
        f"# <T>\n\n- {'x ' * 46}x\n  x x x\n- a-b\n"
        "| a     | long |\n|-------|------|\n| b & c | 1    |\n"
    )
    assert "# ⟨U+001B⟩[2J\n" in render(template, title="\x1b[2J", items=[], rows=rows)
    with pytest.raises(UndefinedError):
        render(template, title="T", items=[])
