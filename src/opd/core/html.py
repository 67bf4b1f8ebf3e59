"""The page that every report shares: one HTML file that needs no other, on any screen and on paper.

A page is a Jinja template that extends ``base``. Values are escaped unless they are ``Markup``;
control characters are spelt out, whatever they came in.
"""

from collections.abc import Iterable, Sequence

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from opd.core.security import visible

# The policy keeps the page whole offline and safe: nothing is loaded, no script runs.
BASE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --faint: light-dark(#5c5c5c, #a8a8a8);
  --panel: light-dark(#f5f5f3, #242424); --link: light-dark(#0b57a4, #8ab8f0);
  --bar: #4878a8; --cut: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem;
  overflow-wrap: anywhere; }
a { color: var(--link); }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin-bottom: .4rem; }
table { border-collapse: collapse; overflow-wrap: break-word; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: right;
  vertical-align: top; }
thead th { vertical-align: bottom; }
th:first-child, td:first-child, table.text :is(th, td) { text-align: left; }
tbody th { font-weight: 400; }
/* A shadow at the edge behind which there is more. */
.scroll { margin: .5rem 0 1rem; overflow-x: auto; --shade: light-dark(#0003, #fff3);
  background: linear-gradient(to right, Canvas 40%, transparent) left / 2.5rem 100% local,
    linear-gradient(to left, Canvas 40%, transparent) right / 2.5rem 100% local,
    linear-gradient(to right, var(--shade), transparent) left / .8rem 100% scroll,
    linear-gradient(to left, var(--shade), transparent) right / .8rem 100% scroll;
  background-repeat: no-repeat; }
td { white-space: nowrap; }
table.text td { white-space: normal; min-width: 5rem; }
table.text a { white-space: nowrap; }
tbody th { min-width: 7rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .scroll { background: none; }
  table { font-size: 8pt; }
  td, table.text a { white-space: normal; }
  td, tbody th, table.text td { min-width: 0; }
  details::details-content { content-visibility: visible; height: auto; }
  h2, h3 { break-after: avoid; }
}
{% block style %}{% endblock %}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</body>
</html>
"""
_PAGES = Environment(
    loader=DictLoader({"base": BASE}),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

_TABLE = _PAGES.from_string("""\
<div class="scroll" tabindex="0" role="region" aria-label="{{ name }}">
<table{% if text %} class="text"{% endif %}>
<thead><tr>{% for cell in header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>
{%- else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
""")


def render(template: str, title: str, **values: object) -> str:
    """The HTML of a page: a template that extends ``base`` and fills its blocks style and body."""
    return visible(_PAGES.from_string(template).render(title=title, **values))


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    name: str = "table",
    text: bool = False,
) -> Markup:
    """Rows below a header, which scroll sideways where the screen is narrow. The first column is a
    name, the others are numbers (to the right) or, with ``text``, words (to the left); ``name`` is
    what a screen reader says."""
    return Markup(_TABLE.render(header=header, rows=rows, name=name, text=text))


_PAGES.globals["table"] = table
