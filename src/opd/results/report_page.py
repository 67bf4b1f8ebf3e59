"""The template of the report (Jinja). A string, so that it counts as code of the stage."""

TEMPLATE = """\
{% extends "base" %}

{% block style %}
{{ claims_style }}
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
figure, .table, .trouble { border: 1px solid var(--line); border-radius: .4rem;
  margin: .8rem 0; padding: .7rem 1rem; min-width: 0; }
.trouble ul { padding-left: 1.2rem; }
figcaption, .note { color: var(--faint); font-size: .9rem; }
.trouble { border: 2px solid var(--not-reproduced); }
a.from { color: inherit; text-decoration: underline dotted; text-underline-offset: .2em; }
figure h3, .table h3 { margin-top: 0; }
.image { background: #fff; overflow-x: auto; }
.image img { display: block; width: 100%; max-width: 60rem; height: auto; margin: 0 auto; }
/* A figure fits the screen; where that is too small to read, it grows on request. */
.enlarge { display: none; }
@media (max-width: 40rem) {
  .enlarge { display: block; font-size: .9rem; padding: .4rem 0; }
  .enlarge:has(:checked) + .image img { min-width: 44rem; }
}
@media print {
  nav { display: none; }
  figure { break-inside: avoid; }
  .enlarge { display: none; }
  .image img { min-width: 0 !important; }
}
{% endblock %}

{% macro troubles(made) %}{% if made.troubles %}
<div class="trouble"><strong>⚠ Not as it was made.</strong>
<ul>{% for line in made.troubles %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}{% endmacro %}
{% macro claim_link(claim) %}<a href="#{{ anchor(of_claim(claim)) }}">{{ claim.id }}</a>
{%- endmacro %}
{% macro time(stamp) %}{{ stamp[:10] }} {{ stamp[11:16] }} UTC{% endmacro %}
{% macro link(path, text) %}<a href="{{ file(path) }}">{{ text }}</a>{% endmacro %}

{% macro made_from(origins, of) %}{% if origins %}
<details><summary>Made from</summary>
<div class="scroll" tabindex="0" role="region" aria-label="what {{ of }} was made from">
<table class="text"><thead><tr><th scope="col"></th><th scope="col">artifacts, with the digests of
their contents</th></tr></thead>
<tbody>
{% for one in origins %}
<tr id="{{ one.anchor }}"><th scope="row">{{ one.label }}</th>
<td>{% for link in one.links %}{{ link.role }}: <a href="{{ link.href }}">{{ link.folder }}</a>
<code>{{ link.digest }}</code>{% if not loop.last %}<br>{% endif %}
{% else %}nothing that was measured here{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}{% endmacro %}

{% macro figure_card(figure) %}
<figure id="{{ anchor('figure:' ~ figure.name) }}">
<h3>{{ figure.called }}</h3>
{{ troubles(figure.made) }}
{% if figure.image %}
<label class="enlarge"><input type="checkbox"> enlarge {{ figure.called }} (moves sideways)</label>
<div class="image" tabindex="0" role="region" aria-label="{{ figure.title }}">
<img src="{{ figure.image.uri }}"
width="{{ figure.image.width }}" height="{{ figure.image.height }}"
alt="{{ figure.title }}. What it shows in numbers is below it, under Values drawn."></div>
{% else %}
<p>{{ figure.title }}: figure.svg is missing or cannot be read.</p>
{% endif %}
<figcaption>
{% for part in figure.caption %}<p>{{ part }}</p>{% endfor %}
<p>{{ link("figures/" ~ figure.name ~ ".svg", "SVG") }} ·
{{ link("figures/" ~ figure.name ~ ".png", "PNG") }} ·
{{ link(figure.made.folder ~ "/manifest.json", "manifest") }}</p>
</figcaption>
{% if figure.claims %}
<p>Claims: {% for claim in figure.claims %}{{ claim_link(claim) }} ({{ claim.verdict }})
{%- if not loop.last %}, {% endif %}{% endfor %}</p>
{% endif %}
{% if figure.drawn %}
<details><summary>Values drawn</summary>
{{ table(["", "value"], figure.drawn, name="values drawn in " ~ figure.title) }}</details>
{% endif %}
{{ made_from(figure.origins, figure.title) }}
{% if figure.many %}
<details><summary>Published values: {{ figure.many }}
{%- if not found.comparable %} (not comparable at this scale){% endif %}</summary>
{{ figure.published }}</details>
{% endif %}
</figure>
{% endmacro %}

{% macro run_table(verb, of) %}
<div class="scroll" tabindex="0" role="region" aria-label="runs of {{ verb }}"><table class="text">
<thead><tr><th scope="col">run</th><th scope="col">time</th><th scope="col">device</th>
<th scope="col">made from</th><th scope="col">files</th></tr></thead>
<tbody>
{% for run in of %}{% set manifest = run.made.manifest %}
<tr><th scope="row" id="{{ anchor('run:' ~ run.folder) }}">{{ run.name }}
{% for line in run.made.troubles %}<br><strong>⚠ {{ line }}</strong>{% endfor %}</th>
<td>{% if manifest.adopted is defined %}adopted{% else %}{{ duration(manifest.seconds) }}{% endif %}
</td><td>{{ manifest.device }}</td>
<td>{% for name, used in manifest.inputs.items() %}
{% if used.identity %}{{ name }}: {{ link(folder_of(used.path) ~ "/manifest.json",
  folder_of(used.path)) }}{% else %}{{ name }}: a file{% endif %}
{%- if not loop.last %}<br>{% endif %}
{% else %}nothing{% endfor %}</td>
<td>{{ link("logs/" ~ run.folder ~ ".log", "log") }}&nbsp;·&nbsp;
{{- link(run.folder ~ "/manifest.json", "manifest") }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}

{% block body %}
<p>Scale: <strong>{{ scale }}</strong>.</p>
{% if wrong %}
<div class="trouble" id="wrong"><strong>⚠ {{ wrong | length }} of {{ artifacts }} artifacts behind
this page are not what they should be.</strong>
<ul>{% for one in wrong %}<li>
{%- if one.folder in anchors %}<a href="{{ anchors[one.folder] }}">{{ one.folder }}</a>
{%- else %}{{ one.folder }}{% endif %}: {{ one.troubles | join("; ") }}</li>{% endfor %}</ul>
To make them again, run the workflow as before with
<code>--forcerun{% for one in wrong %} {{ results }}/{{ one.folder }}/digest.json{% endfor %}
 {{ results }}/report/digest.json</code>. What is whole in the store is used again.</div>
{% else %}
<p>All {{ artifacts }} artifacts behind this page are current, and their files are as they were
made.</p>
{% endif %}
{% if adopted %}
<p>Adopted, and not made here: {{ adopted | join(", ") }}.</p>
{% endif %}
<p class="meta">Compared by sha256 is every file of every artifact; of a model's weights only
whether they are there.</p>
<nav aria-label="contents"><ul>
{% if claims %}<li><a href="#claims">Claims</a></li>{% endif %}
{% for section in sections %}<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
{% if tables %}<li><a href="#tables">Tables</a></li>{% endif %}
{% if found.targets %}<li><a href="#published">Published values</a></li>{% endif %}
<li><a href="#runs">Runs</a></li><li><a href="#cost">Cost</a></li>
<li><a href="#environment">Environment</a></li>
</ul></nav>
<main>
{% if claims %}
<section id="claims"><h2>Claims</h2>
{{ troubles(claims) }}
{{ claims_html }}
{{ made_from(claims_from, "claims") }}
</section>
{% endif %}
{% for section in sections %}
<section id="section-{{ loop.index }}"><h2>{{ section.title }}</h2>
{% for figure in section.figures %}{{ figure_card(figure) }}{% endfor %}
</section>
{% endfor %}
{% if tables %}
<section id="tables"><h2>Tables</h2>
{% for one in tables %}
<div class="table" id="{{ anchor('table:' ~ one.name) }}"><h3>{{ one.title }}</h3>
{{ troubles(one.made) }}
{% if one.caption %}<p>{{ one.caption }}</p>{% endif %}
{{ one.html }}
<p class="note">{{ one.note }}</p>
{{ made_from(one.origins, one.title) }}
<p class="meta">{{ link("tables/" ~ one.name ~ ".csv", "CSV") }} ·
{{ link("tables/" ~ one.name ~ ".md", "Markdown") }} ·
{{ link(one.made.folder ~ "/manifest.json", "manifest") }}</p></div>
{% endfor %}
</section>
{% endif %}
{% if found.targets %}
<section id="published"><h2>Published values</h2>
{{ published }}</section>
{% endif %}
<section id="runs"><h2>Runs</h2>
{% for verb, of in runs.items() %}
<details{% if of | selectattr("made.troubles") | list %} open{% endif %}>
<summary>{{ verb }}: {{ of | length }},
{{ duration(of | sum(attribute="made.manifest.seconds")) }}</summary>
{{ run_table(verb, of) }}</details>
{% else %}<p>None.</p>{% endfor %}
</section>
<section id="cost"><h2>Cost</h2>
<p>Added up, the {{ cost.stages }} stages behind this page took {{ duration(cost.seconds) }} of
wall-clock time{% if cost.first %}; the first began on {{ time(cost.first) }}, the last on
{{ time(cost.last) }}{% endif %}. A stage counts once, with the time that it took when it was
computed, also where it is used in several places or again.</p>
<div class="short">
{{ table(["verb"] + cost.columns, cost.verb, name="cost by verb") }}
{{ table(["device"] + cost.columns, cost.device, name="cost by device") }}</div>
</section>
<section id="environment"><h2>Environment</h2>
<p>Versions that the stages recorded. More than one: how many artifacts were made with each.</p>
<div class="short">
{{ table(["package", "version"], package_rows, name="versions of packages", text=true) }}</div>
</section>
</main>
{% endblock %}
"""
