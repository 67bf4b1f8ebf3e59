"""The report shows all there is, says what is not as it was made, and is a sound page."""

import json
import re
import shutil
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote

import pytest
import test_claims
from hypothesis import given
from hypothesis import strategies as st
from reported import Page, reported
from results import SVG, Results, check, claim, found, published, sample, target

from opd.core.errors import UserError
from opd.core.files import digest
from opd.core.markdown import line
from opd.results import report
from opd.results.claims_page import MARKS
from opd.stages import run as runner

measured = test_claims.inputs  # a fixture: what claims are judged on


def part(html: str, anchor: str) -> str:
    """The text of one element with an id, up to the next sibling of its kind."""
    start = html.index(f'id="{anchor}"')
    tag = re.findall(r"<(\w+)", html[:start])[-1]
    return html[start : html.index(f"</{tag}>", start)]


def test_all_there_is_appears(tmp_path):
    page, html = reported(sample(tmp_path), tmp_path / "out")
    counts = (
        "4 claims: 1 reproduced, 1 not reproduced, 1 inconclusive, 0 not comparable, 1 not run."
    )
    assert counts in page.text
    # By paper in the summary, and by experiment.
    of_paper = "✓ reproduced 1 ✗ not reproduced 1 ≈ inconclusive 1 ○ not run 1"
    assert f"A Paper (arXiv) : {of_paper}" in page.text
    assert "Success and failure (E04) ✓ reproduced 1 ✗ not reproduced 1" in page.text
    assert "A cold start (E06) ≈ inconclusive 1" in page.text
    assert "○ not run : 1 claim. Not measured here: E12.k64." in page.text
    for one in found()["claims"]:
        if one["verdict"] == "not run":  # folded into a line of its experiment
            assert one["statement"] in part(html, "not-run:a_paper/E12")
            assert f'<li id="claim:a_paper/{one["id"]}" data-item' in html
            continue
        card = part(html, f"claim:a_paper/{one['id']}")
        assert one["statement"] in card
        assert f"</span>{': ' + one['reason'] if one['reason'] else ''}" in card
        assert re.search(rf"[✓✗≈○] {one['verdict']}</span>", card)
    assert "gap recovered 88.5 % [85.0, 92.0]; claimed: at least 80 % (✓ reproduced)" in page.text
    assert "it rises −0.1 [−0.2, −0.05] (✗ not reproduced)" in page.text
    # A figure is linked from its claims and from its published value.
    assert html.count('<a href="#figure:a_paper/fig06">fig06</a>') == 3
    assert [b64decode(uri.partition(",")[2]).decode() for uri in page.values("src")] == [SVG] * 2
    assert [of["alt"].partition(".")[0] for tag, of in page.tags if tag == "img"] == [
        "Recovery",
        "A cold start",
    ]
    assert "What came back." in page.text and "large · macro 0.5 [0.4, 0.6]" in page.text
    row = (
        "R033 E04 Success and failure Fig6 recovery 0.812 printed 88.5 % [85.0, 92.0] "
        "not comparable E04-recovery reproduced, fig06"
    )
    assert page.text.count(row) == 1
    for section in ("Success", "Cold start", "Tables", "Runs", "Cost", "Environment"):
        assert f"<h2>{section}</h2>" in html
    assert "small | after SFT" in page.text and "36.3 [32.9, 39.7]" in page.text
    for run in ("small-from-large/s0", "held-out/small-from-large/s0", "E11.success/s0"):
        assert run in page.texts or f"{run}\n" in page.texts
    assert "hyperparameter" in page.text


def test_differences_where_the_scale_may_be_compared(tmp_path):
    page, _ = reported(sample(tmp_path / "a"), tmp_path / "out-a")
    row = "R033: recovery, a setting 0.812 88.5 % [85.0, 92.0]"
    assert "Published: recovery: 0.812 (not comparable at this scale)" in page.text
    assert f"{row} not comparable printed where R033 stands" in page.text
    page, _ = reported(sample(tmp_path / "b", comparable=True), tmp_path / "out-b")
    assert f"{row} +7.2 points [3.8, 10.8], agrees printed where R033 stands" in page.text
    assert "ot comparable" not in page.text


@pytest.mark.parametrize("comparable", [True, False])
def test_claims_as_their_stage_writes_them(tmp_path, measured, comparable):
    results = Results(tmp_path)
    found = test_claims.judged(measured, tmp_path / "claims", comparable=comparable)
    results.claims(found, {})
    page, _ = reported(results, tmp_path / "out")
    assert {one["verdict"] for one in found["claims"]} == {*MARKS} - (
        {"not comparable"} if comparable else set()
    )
    for one in found["claims"]:
        assert one["statement"] in page.text
        if one["verdict"] == "not run":
            names = one["reason"].removeprefix("not measured: ").removesuffix(" (E04)")
            assert names in page.text
            continue
        assert one["reason"] in page.text
        assert all(check["text"] in page.text for check in one["checks"])
        for row in one["published"]:
            assert row["source"] in page.text
            for shown in filter(None, (row["ours"], row["difference"])):
                assert shown["text"] in page.text
    differences = [row["difference"] for one in found["claims"] for row in one["published"]]
    assert any(differences) is comparable


def test_cost_adds_up_what_lies_behind_the_page_too(tmp_path):
    """2 + 3 + 3725 + 60 + 4.5 and one second for each of two figures, table and claims."""
    page, _ = reported(sample(tmp_path), tmp_path / "out")
    assert "the 9 stages behind this page took 1 h 03 min" in page.text  # 3,798.5 s
    assert "distill 1 1 h 02 min" in page.text and "init 1 3.0 s" in page.text
    assert "A GPU 1 1 h 02 min" in page.text and "cpu 8 1 min 14 s" in page.text  # 73.5 s
    assert "python 3.11.7 (8 artifacts), 3.12.1 (1 artifact)" in page.text
    assert "torch 2.13.0" in page.text


def test_what_two_folders_link_counts_once(tmp_path):
    results = Results(tmp_path)
    for name in ("a", "b"):
        results.run("distill", f"models/{name}/s0", {}, seconds=30.0, identity="same")
    page, _ = reported(results, tmp_path / "out")
    assert "distill 1 30.0 s" in page.text and "distill: 2," in page.text


def test_what_stages_drew_from_gpus_stands_beside_their_time(tmp_path):
    results = Results(tmp_path)
    results.run("distill", "models/dry/s0", {}, seconds=5.0)
    page, _ = reported(results, tmp_path / "out")
    assert "GPU" not in page.text
    gib = 2**30
    for name, seconds, peak, busy, joules in [
        ("a", 100.0, 70 * gib, 0.9, 36_000.0),
        ("b", 300.0, 20 * gib, 0.5, 54_000.0),
    ]:
        gpu = {"peak_memory_bytes": peak, "utilisation": busy, "energy_joules": joules}
        results.run("distill", f"models/{name}/s0", {}, seconds=seconds, device="H100", gpu=gpu)
    page, _ = reported(results, tmp_path / "out")
    assert "GPU memory, peak (GiB) GPU busy (%) GPU energy (Wh)" in page.text
    # (100 x 0.9 + 300 x 0.5) / 400 = 0.6; 90,000 J are 25 Wh; what ran without a GPU tells nothing.
    assert "H100 2 6 min 40 s 70.0 60 25.0" in page.text
    assert "cpu 1 5.0 s – – –" in page.text
    assert "distill 3 6 min 45 s 70.0 60 25.0" in page.text


@pytest.mark.parametrize("kind", ["changed", "gone", "added"])
def test_modified_payload_is_marked_in_place_and_on_top(tmp_path, kind):
    results = sample(tmp_path)
    page, html = reported(results, tmp_path / "out")
    assert "All 9 artifacts behind this page are current" in page.text and "⚠" not in html
    svg = results.root / "figures/a_paper/fig06/payload/figure.svg"
    if kind == "changed":
        svg.write_text(SVG.replace("a curve", "a better curve"))
    elif kind == "gone":
        svg.unlink()
    else:
        svg.with_name("note.txt").write_text("x")
    numbers = report.run(results.cfg, results.inputs, tmp_path / "out")
    assert numbers["modified or stale"] == 1
    page, html = reported(results, tmp_path / "out")
    words = {
        "changed": "figure.svg was changed",
        "gone": "figure.svg is gone",
        "added": "note.txt was added",
    }
    line = f"{'missing' if kind == 'gone' else 'modified'}: {words[kind]}"
    assert line in part(html, "wrong")
    assert line in html[html.index('id="figure:a_paper/fig06"') : html.index("</figure>")]
    assert html.count(line) == 2
    assert "1 of 9 artifacts" in page.text
    assert ("cannot be read" in page.text) is (kind == "gone")


@pytest.mark.parametrize(
    "folder",
    ["models/small-from-large/s0", "evaluations/held-out/small-from-large/s0", "prompts/rl"],
)
def test_modified_measurement_is_marked_with_the_way_to_mend_it(tmp_path, folder):
    """Of a run of the page, and of what is behind it and has no place there."""
    results = sample(tmp_path)
    file = next((results.root / folder / "payload").iterdir())
    file.write_text("by hand")
    page, html = reported(results, tmp_path / "out")
    line = f"modified: {file.name} was changed"
    top = part(html, "wrong")
    again = f"--forcerun results/mini/{folder}/digest.json results/mini/report/digest.json"
    assert line in top and again in top and "1 of 9 artifacts" in page.text
    if folder != "prompts/rl":
        assert line in part(html, f"run:{folder}")


def test_weights_must_be_there_and_are_not_read(tmp_path):
    results = Results(tmp_path)
    files = {"model-1.safetensors": "a", "deep/model.safetensors": "b", "config.json": "{}"}
    (results.root / "models/small/s0/payload/deep").mkdir(parents=True)
    results.add("init", "models/small/s0", files)
    results.run("distill", "models/small-from-large/s0", {"student": "models/small/s0"})
    weights = results.root / "models/small/s0/payload/model-1.safetensors"
    weights.write_text("others")
    page, _ = reported(results, tmp_path / "out")
    assert "of a model's weights only whether they are there." in page.text
    assert "All 2 artifacts" in page.text and "modified" not in page.text
    weights.unlink()
    page, _ = reported(results, tmp_path / "out")
    assert "models/small/s0: missing: model-1.safetensors is gone" in page.text


def test_the_summary_counts_claims_of_our_own_apart(tmp_path):
    """As the lines above the claims do."""
    results = sample(tmp_path)
    judged = found()
    judged["claims"][0]["ours"] = True
    (results.root / "claims/payload/claims.json").write_text(json.dumps(judged))
    page, html = reported(results, tmp_path / "out")
    assert "</span>, of our own: <span" in html
    verdict = f"✓ {judged['claims'][0]['verdict']} 1"
    assert f"of our own: {verdict}" in page.text.replace(" :", ":")
    assert "A Paper (arXiv) : ✗ not reproduced 1 ≈ inconclusive 1 ○ not run 1" in page.text


def test_modified_claims_and_tables_are_marked(tmp_path):
    results = sample(tmp_path)
    changed = found()
    changed["claims"][3]["verdict"] = "reproduced"
    (results.root / "claims/payload/claims.json").write_text(json.dumps(changed))
    (results.root / "tables/headline/payload/table.md").write_text("| a |\n|---|\n| 99 |\n")
    _, html = reported(results, tmp_path / "out")
    claims = html[html.index('id="claims"') : html.index('id="claim:')]
    assert "modified: claims.json was changed" in claims
    table = html[html.index('id="table:headline"') :]
    assert "modified: table.md was changed" in table[: table.index("<table")]


def test_what_was_made_from_another_state_is_stale(tmp_path):
    """Also far behind what is shown: the run is stale, what was made from it is not."""
    results = sample(tmp_path)
    results.add("prompts", "prompts/rl", {"prompts.parquet": "other prompts"})
    page, html = reported(results, tmp_path / "out")
    line = "stale: prompts/rl, which it was made from, was made anew"
    assert "1 of 9 artifacts" in page.text and html.count(line) == 2
    assert line in html[html.index('id="run:models/small-from-large/s0"') :]
    shutil.rmtree(results.root / "prompts/rl")
    page, _ = reported(results, tmp_path / "out")
    assert (
        "models/small-from-large/s0 : missing: prompts/rl, which it was made from, is gone"
        in page.text
    )


def test_other_settings_than_the_plan(tmp_path):
    results = sample(tmp_path)
    folders = ("models/small/s0", "prompts/rl", "tables/headline")
    plan = {}
    for folder in folders:
        record = json.loads((results.root / folder / "digest.json").read_text())
        settings = "other" if folder == folders[0] else record["settings"]
        plan[folder] = {"settings": settings, "inputs": []}
    (results.root / "plan.json").write_text(json.dumps(plan))
    page, _ = reported(results, tmp_path / "out")
    assert "1 of 9 artifacts" in page.text
    assert "models/small/s0: stale: made with other settings than the config's" in page.text
    again = "results/mini/models/small/s0/digest.json results/mini/report/digest.json"
    assert f"--forcerun {again}" in page.text


def test_published_values_of_a_figure_are_folded_and_say_whose_they_are(tmp_path):
    results = Results(tmp_path)
    arms = {"E04.success": {"label": "small ← large"}, "E04.other": {"label": "another"}}
    cfg = {
        "series": [{"arm": "E04.success", "label": "success"}],
        "panels": [{"quantity": {"avg": "macro"}}, {"series": [{"arm": "E04.other"}]}],
        "arms": arms,
        "published": [
            {"target": "R1", "series": "E04.success", "metric": "overlap_ratio"},
            {"target": "R2", "series": "E04.other", "metric": "overlap_ratio"},
            {"target": "R3", "series": "E04.gone", "metric": "overlap_ratio"},
            {"target": "R4"},
        ],
    }
    results.figure("a_paper/fig06", "A paper", {}, title="T", **cfg)
    more = [{"ours": ["88.5 %", "90 %"]}, {"benchmark": "AIME", "setting": "last"}, {}, {}]
    targets = [target(f"R{i}", [], ["a_paper/fig06"], **one) for i, one in enumerate(more, start=1)]
    results.claims({**found(), "claims": [], "targets": [*targets, target("R5", [], [])]}, {})
    page, html = reported(results, tmp_path / "out")
    folded = "<details><summary>Published values: 4 (not comparable at this scale)</summary>"
    assert folded in html
    assert "of what benchmark setting published ours" in page.text
    assert "success recovery (R1) – – 0.812 (printed) 88.5 %; 90 %" in page.text
    assert "another recovery (R2) AIME last 0.812 (printed) –" in page.text
    assert "E04.gone recovery (R3) – – 0.812 (printed) –" in page.text
    assert "– recovery (R4) – – 0.812 (printed) –" in page.text
    results = sample(tmp_path / "b", comparable=True)
    assert "<summary>Published values: 1</summary>" in reported(results, tmp_path / "out-b")[1]


def test_caption_is_the_one_drawn(tmp_path):
    results = sample(tmp_path)
    text = "**Recovery**\n\nWhat came back, and how.\n\nNot drawn: E05.union.\n"
    (results.root / "figures/a_paper/fig06/payload/caption.md").write_text(text)
    _, html = reported(results, tmp_path / "out")
    assert "<p>What came back, and how.</p><p>Not drawn: E05.union.</p>" in html
    assert "What came back.</p>" not in html and "**" not in html


def test_digest_and_manifest_of_two_runs(tmp_path):
    results = sample(tmp_path)
    path = results.root / "probes/E11.success/s0/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identity": "another"}))
    page, _ = reported(results, tmp_path / "out")
    line = "probes/E11.success/s0 : modified: digest.json differs from what manifest.json says"
    assert f"{line} (identity)" in page.text


def _sound(page: Page, html: str, root: Path) -> None:
    """Unique ids; links lead to an id of the page or a file beside it; nothing is loaded."""
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert not any(re.search(r"\s", name) for name in ids)
    links = page.values("href")
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids, link
        else:
            assert not re.match(r"[a-z]+:|//|/", link), link
            assert (root / unquote(link)).exists(), link
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.values("src"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") for _, of in page.tags for name in of)
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html


def test_page_is_sound(tmp_path):
    results = sample(tmp_path)
    # Marks have links too.
    (results.root / "figures/fig09/payload/figure.svg").write_text("changed")
    _sound(*reported(results, tmp_path / "out"), results.root)


def test_scores_by_every_grader_stand_side_by_side(tmp_path):
    results = sample(tmp_path)
    assert 'id="graders"' not in reported(results, tmp_path / "out")[1]
    graded = {
        "metrics": {"rule": 0.5, "math_verify": 0.625, "relaxed": 0.75},
        "choices": {"box": 3, "thinking": 132, "exact": 0},
    }
    others = {"metrics": {"choice": 0.5}, "choices": {"box": 1, "thinking": 1, "exact": 0}}
    # By one grader that reads boxes there is nothing to stand beside.
    alone = {**graded, "metrics": {"rule": 0.5}}
    benchmarks = {"aime": graded, "gpqa": others, "words": alone}
    summary = {"benchmarks": benchmarks | {"easy": {"metrics": {"world": 1.0}}}}
    files = {"summary.json": json.dumps(summary)}
    protocol = {"cfg": {"protocol": {"grader": "math_verify"}}}
    results.run("evaluate", "evaluations/e/m/s0", {}, **protocol)
    results.add("evaluate", "evaluations/e/m/s0", files, **protocol)
    page, html = reported(results, tmp_path / "out")
    assert re.sub("<[^>]*>", " ", part(html, "graders")).split()[-9:] == [
        *("e/m/s0:", "aime", "math_verify", "50.0", "62.5", "75.0", "3", "132", "0")
    ]
    _sound(page, html, results.root)
    (results.root / "evaluations/e/m/s0/payload/summary.json").write_text("{")
    assert 'id="graders"' not in reported(results, tmp_path / "out")[1]


HOSTILE = """<script>alert('1')</script>"></style><img src=x onerror="a">&amp;{{ 7 * 7 }}"""


def test_hostile_strings_stay_text(tmp_path):
    """In names of files too, as far as those can hold them."""
    name = 'a "b" <i>c&d#e?f%20:g'
    results = sample(tmp_path)
    results.cfg["title"] = results.cfg["scale"] = HOSTILE
    training = {HOSTILE: "models/small-from-large/s0"}
    results.figure(name, HOSTILE, training, title=HOSTILE, caption=HOSTILE)
    path = results.root / "figures" / name / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "numbers": {HOSTILE: HOSTILE}}))
    results.table(name, training, title=HOSTILE, caption=HOSTILE)
    results.run("distill", f"models/{name}", training, device=HOSTILE, versions={HOSTILE: HOSTILE})
    hostile = found()
    hostile["claims"].append(
        claim(
            *(name, "reproduced"),
            experiment=HOSTILE,
            section=HOSTILE,
            statement=HOSTILE,
            reason=HOSTILE,
            figure=name,
            published=[{**published(HOSTILE, HOSTILE, HOSTILE, None), "source": HOSTILE}],
            checks=[check(HOSTILE, HOSTILE)],
        )
    )
    hostile["targets"].append(
        target(HOSTILE, [name], [name], metric=HOSTILE, status=HOSTILE, context=HOSTILE)
    )
    results.claims(hostile, {})
    page, html = reported(results, tmp_path / "out")
    _sound(page, html, results.root)
    assert "".join(page.texts).count("alert('1')") >= 15
    assert "<script" not in html and "<i>" not in html
    assert "{{ 7 * 7 }}" in page.text
    assert {tag for tag, _ in page.tags} == {
        tag for tag, _ in reported(sample(tmp_path / "plain"), tmp_path / "out")[0].tags
    }


def test_without_claims_or_runs(tmp_path):
    results = Results(tmp_path)
    results.figure("one", "Figures", {}, title="One")
    page, html = reported(results, tmp_path / "out")
    assert 'id="claims"' not in html and "Tables" not in html and "Runs" in page.text
    ids = page.values("id")
    assert all(link[1:] in ids for link in page.values("href") if link.startswith("#"))


def test_same_files_same_bytes(tmp_path):
    results = sample(tmp_path)
    assert reported(results, tmp_path / "a")[1] == reported(results, tmp_path / "b")[1]


def test_stage_looks_anew_each_time(tmp_path, monkeypatch):
    """The identity of a report does not know what was changed by hand, so the store must not
    answer for it."""
    results = sample(tmp_path)
    monkeypatch.chdir(tmp_path)
    root = Path("results/mini")
    cfg = {**results.cfg, "inputs": list(results.folders)}

    def stage() -> str:
        inputs = [root / folder / "digest.json" for folder in results.folders.values()]
        copies = {"report.html": root / "report.html"}
        store = Path("results/.store")
        assert runner.run_stage("report", cfg, inputs, root / "report/digest.json", copies, store)
        return (root / "report.html").read_text()

    whole = stage()
    svg = root / "figures/a_paper/fig06/payload/figure.svg"
    svg.write_text(SVG + "\n")
    assert "figure.svg was changed" in stage()
    svg.write_text(SVG)
    assert stage() == whole
    assert "figure.svg" not in whole


def test_missing_manifest_is_named(tmp_path):
    results = sample(tmp_path)
    (results.root / "figures/a_paper/fig06/manifest.json").unlink()
    with pytest.raises(UserError, match=r"figures/a_paper/fig06/manifest\.json"):
        reported(results, tmp_path / "out")


cells = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1)
    )
)
def test_tables_are_read_as_they_were_written(rows):
    header = [f"column {i}" for i in range(len(rows[0]))]
    table = map(line, [header, ["---"] * len(header), *rows])
    text = "\n".join(["**a title**", "", *table, "", "A note."])
    assert report.parse(text) == (header, rows, "A note.")


def test_numbers_and_times():
    assert report.number(0.98765) == "0.988" and report.number(-2) == "−2"
    assert report.number(None) == "–" and report.number("~40 %") == "~40 %"
    assert report.number(-1.5e-6) == "−1.5e−06"
    times = {59.94: "59.9 s", 59.96: "1 min 00 s", 3599.6: "1 h 00 min", 3725: "1 h 02 min"}
    for seconds, text in times.items():
        assert report.duration(seconds).replace("\u00a0", " ") == text


def test_values_drawn_are_in_the_order_of_their_numbers():
    names = ["prefix of 10", "prefix of 2", "a · 1", "prefix of 2 · b", "prefix"]
    ordered = ["a · 1", "prefix", "prefix of 2", "prefix of 2 · b", "prefix of 10"]
    assert [name for name, _ in sorted(((n, "") for n in names), key=report._by_number)] == ordered


def test_each_cell_and_series_leads_to_the_artifacts_that_it_is_from(tmp_path):
    results = Results(tmp_path)
    results.add("prompts", "prompts/rl", {"prompts.parquet": "rl"})
    results.run("distill", "models/a/s0", {"prompts": "prompts/rl"})
    results.run("evaluate", "evaluations/e/a/s0", {"model": "models/a/s0"})
    results.add("pair", "probes/p/s0", {"probe.json": "{}"}, {"student": "models/a/s0"})
    used = {
        "evaluation:a:s0": "evaluations/e/a/s0",
        "run:a:s0": "models/a/s0",
        "probe:p:s0": "probes/p/s0",
    }
    scored = ["evaluation:a:s0"]
    rows = [
        {"label": "small", "evaluations": scored, "teacher": scored, "run": ["run:a:s0"]},
        {"label": "large", "probe": ["probe:p:s0"], "base": scored},
    ]
    shown = ["change", {"column": "avg:easy", "label": "easy"}, "last:loss", "probe:auroc"]
    results.table("t", used, title="A table", rows=rows, columns=shown)
    arms = {"E04.x": {"label": "an arm", "run": ["run:a:s0"], "scores": {"9": [*used][:1]}}}
    own = [{"label": "bars", "evaluations": ["evaluation:a:s0"]}, {"probe": "E10"}]
    results.figure("f", "Figures", used, title="A figure", arms=arms, series=own)
    page, html = reported(results, tmp_path / "out")

    cells = [of["href"] for tag, of in page.tags if tag == "a" and of.get("class") == "from"]
    assert cells == ["#from:table:t:0"] * 2 + ["#from:table:t:1"] * 2

    def leads(anchor: str) -> set[tuple[str, str, str]]:
        row = html[html.index(f'<tr id="{anchor}"') :]
        found = re.findall(
            r'([\w ]+(?: \([^)]*\))?): <a href="([^"]+)">[^<]+</a>\s*<code>(\w+)</code>',
            row[: row.index("</tr>")],
        )
        return {(role.strip(), href, digest) for role, href, digest in found}

    def digest_of(folder: str) -> str:
        outputs = json.loads((results.root / folder / "digest.json").read_text())["outputs"]
        return digest(outputs)[:12]

    _sound(page, html, results.root)  # and so lead to what is there
    scores, run = "#run:evaluations/e/a/s0", "#run:models/a/s0"
    of = {
        scores: digest_of("evaluations/e/a/s0"),
        run: digest_of("models/a/s0"),
        "probes/p/s0/manifest.json": digest_of("probes/p/s0"),
    }

    def named(*links: tuple[str, str]) -> set[tuple[str, str, str]]:
        return {(role, href, of[href]) for role, href in links}

    # No column asks for the teacher.
    assert leads("from:table:t:0") == named(
        ("scores (change, avg:easy)", scores), ("training run (last:loss)", run)
    )
    assert leads("from:table:t:1") == named(
        ("scores before (change)", scores), ("probe (probe:auroc)", "probes/p/s0/manifest.json")
    )
    assert leads("from:figure:f:0") == named(("training run", run), ("scores at step 9", scores))
    assert leads("from:figure:f:1") == named(("scores", scores))


def test_what_was_adopted_is_said_and_costs_nothing(tmp_path):
    results = sample(tmp_path)
    results.run("grpo", "models/theirs/s0", {}, seconds=9999.0, adopted="/from/<elsewhere>")
    page, html = reported(results, tmp_path / "out")
    assert "Adopted, and not made here: models/theirs/s0." in page.text
    row = html[html.index('id="run:models/theirs/s0"') :]
    assert ">adopted</td>" in row[: row.index("</tr>")]
    assert "the 9 stages behind this page took 1 h 03 min" in page.text


def test_what_is_odd_about_a_prompt_set_is_said(tmp_path):
    results = sample(tmp_path)
    numbers = {"prompts": 9, "notes": ["8 of 9 rows ask again", "hold <|im_end|>"]}
    results.add("prompts", "prompts/odd", {"prompts.parquet": "odd"}, numbers=numbers)
    results.run("distill", "models/odd/s0", {"prompts": "prompts/odd"})
    page, _ = reported(results, tmp_path / "out")
    assert "prompts/odd: 8 of 9 rows ask again; hold <|im_end|>." in page.text
