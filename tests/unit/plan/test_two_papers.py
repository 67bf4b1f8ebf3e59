"""Two papers whose claims, rows, figures and experiments have the same names, from their files to
the report: each keeps its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from measurements import evaluation
from results import Results

from opd.core.errors import UserError
from opd.plan.artifacts import plan
from opd.plan.outputs import exhibits, targets
from opd.recipes.resolve import resolve
from opd.results import claims, report
from opd.results.claim_spec import TARGETS

ROOT = Path(__file__).parents[3]
# Both have experiment E04 and share its student; `second` has A4 besides.
ARMS = {
    "first": {"E04.student": "the student", "E04.good": "a run that succeeds"},
    "second": {"E04.student": "the student", "A4.other": "another run"},
}
OWN = {"first": "E04.good", "second": "A4.other"}
EXPERIMENT = {"first": "E04", "second": "A4"}
BOUND = {"first": 0.5, "second": 0.95}
ROWS = {"first": {"R1": "0.875", "R2": "0.9"}, "second": {"R1": "0.25", "R2": "0.3"}}


def written(root: Path, paper: str, **more: Any) -> None:
    arm, said = OWN[paper], {"section": "1", "statement": f"What {paper} says."}
    both = [
        ("same", EXPERIMENT[paper], {"at_least": {"of": {"avg": arm}, "value": BOUND[paper]}}),
        ("start", "E04", {"at_most": {"of": {"avg": "E04.student"}, "value": 0.5}}),
    ]
    listed = [
        {"id": name, "experiment": experiment, "figure": "fig01", **said, "test": test}
        for name, experiment, test in both
    ]
    listed[0]["published"] = [{"target": "R1", "quantity": {"avg": arm}}]
    given = {"title": f"The {paper} paper", "arms": ARMS[paper], "claims": listed, **more}
    figure = {"title": f"{paper} over steps", "section": "1", "kind": "curves"}
    figure |= {"metrics": [{"name": "loss"}], "series": [{"arm": arm}]}
    figure["published"] = [{"target": "R2", "series": arm, "metric": "avg:macro"}]
    rows = [dict.fromkeys(TARGETS, "-") | {"id": i, "value": v} for i, v in ROWS[paper].items()]
    texts = {
        "claims": yaml.safe_dump(given),
        "figures": yaml.safe_dump({"fig01": figure}),
        "targets": "".join(f"{','.join(row)}\n" for row in [TARGETS, *(r.values() for r in rows)]),
    }
    for part, text in texts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / f"{paper}.{'csv' if part == 'targets' else 'yaml'}").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for paper in ARMS:
        written(tmp_path / "config", paper)
    return tmp_path / "config"


def config(**more: Any) -> dict[str, Any]:
    given = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    arms = {
        "E04.student": {"label": "small", "model": "small"},
        "E04.good": {"label": "good", "model": "small-from-small-rl"},
        "A4.other": {"label": "other", "model": "sampled"},
    }
    changed = {"papers": ["first", "second"], "experiments": "all", "targets": "all"}
    return given | changed | {"arms": arms, "probes": {}, "tables": {}, "figures": {}} | more


def shown(root: Path, **more: Any) -> dict[str, Any]:
    resolved = resolve(config(**more))
    made = exhibits(resolved, plan(resolved, {}), root)
    return {"made": made, "asked": targets(resolved, made)}


def test_papers_keep_their_own_in_the_plan(root: Path) -> None:
    found = shown(root)
    figures = ["figures/first/fig01", "figures/second/fig01"]
    assert found["asked"] == [*figures, "claims", "report"]
    cfg = found["made"]["claims"].cfg
    assert cfg["figures"] == {"first/fig01": ["R2"], "second/fig01": ["R2"]}
    marked = {paper: {"R2": {"avg": arm, "benchmark": "macro"}} for paper, arm in OWN.items()}
    assert cfg["marked"] == marked
    for paper, arm in OWN.items():
        made = found["made"][f"figures/{paper}/fig01"]
        assert made.cfg["title"] == f"{paper} over steps" and [*made.cfg["arms"]] == [arm]
        assert [path for path in made.inputs if path.endswith(f"targets/{paper}.csv")]
    sections = found["made"]["report"].cfg["sections"]
    assert sections == [
        {"title": f"The {paper} paper", "figures": [f"{paper}/fig01"]} for paper in OWN
    ]
    # A name asks for both, a paper's own for one.
    assert shown(root, targets=["fig01"])["asked"] == figures
    assert shown(root, targets=["second/fig01"])["asked"] == figures[1:]
    assert shown(root, targets=["second"])["asked"] == figures[1:]
    # An experiment that both have is asked for in both.
    cfg = shown(root, experiments=["E04"])["made"]["claims"].cfg
    assert cfg["arms"]["A4.other"] == {"label": "other"}
    assert cfg["arms"]["E04.student"].keys() > {"label"}


def test_an_arm_that_two_papers_declare_is_one_run(root: Path) -> None:
    written(root, "second", arms={**ARMS["second"], "E04.student": "another student"})
    with pytest.raises(
        UserError, match=re.escape("papers: arms: first and second declare 'E04.student'")
    ):
        shown(root)


def test_an_error_says_in_which_paper(root: Path) -> None:
    written(root, "second", arms={"E04.student": "the student"})
    with pytest.raises(UserError, match=r"^second: claim same: unknown arm 'A4\.other'"):
        shown(root)
    (root / "figures" / "first.yaml").write_text("fig01: {title: x}\n")
    with pytest.raises(UserError, match=r"^first: figure fig01"):
        shown(root)


@pytest.fixture
def found(root: Path, tmp_path: Path) -> dict[str, Any]:
    """claims.json of both, as the plan has its stage made."""
    cfg = shown(root)["made"]["claims"].cfg | {"seeds": [0], "comparable": True}
    solved = {"small": 1, "small-from-small-rl": 4, "sampled": 3}
    inputs = {
        f"evaluation:{model}:s0": evaluation(tmp_path / model, {"easy": [right] * 40})
        for model, right in solved.items()
    }
    inputs |= {
        f"{part}:{paper}": root / part / f"{paper}.{'csv' if part == 'targets' else 'yaml'}"
        for paper in ARMS
        for part in ("claims", "targets")
    }
    assert {name for name in cfg["inputs"] if ":" in name} == {*inputs}
    out = tmp_path / "claims"
    out.mkdir()
    claims.run(cfg, inputs, out)
    return json.loads((out / "claims.json").read_text()) | {"page": out / "claims.html"}


def test_papers_keep_their_own_in_claims(found: dict[str, Any]) -> None:
    verdicts = {(one["paper"], one["id"]): one["verdict"] for one in found["claims"]}
    # Of the 40 problems all samples are right, or 3 of 4, or 1 of 4.
    assert verdicts == {
        ("first", "same"): "reproduced",
        ("first", "start"): "reproduced",
        ("second", "same"): "not reproduced",
        ("second", "start"): "reproduced",
    }
    for paper, reproduced in {"first": 2, "second": 1}.items():
        about = found["papers"][paper]
        assert about["title"] == f"The {paper} paper"
        assert about["counts"]["reproduced"] == reproduced
        assert sum(about["counts"].values()) == 2
    assert found["counts"]["reproduced"] == 3 and sum(found["counts"].values()) == 4
    rows = {(row["paper"], row["id"]): row for row in found["targets"]}
    assert {key: row["value"] for key, row in rows.items()} == {
        (paper, name): value for paper, of in ROWS.items() for name, value in of.items()
    }
    assert rows["first", "R1"]["ours"] != rows["second", "R1"]["ours"]
    assert rows["first", "R1"]["verdicts"] == ["reproduced"]
    assert rows["second", "R1"]["verdicts"] == ["not reproduced"]
    assert rows["second", "R2"]["figures"] == ["second/fig01"]
    assert rows["second", "R2"]["ours"] == rows["second", "R1"]["ours"]


def test_papers_keep_their_own_on_the_pages(tmp_path: Path, found: dict[str, Any]) -> None:
    page = found.pop("page").read_text()
    results = Results(tmp_path)
    results.add("distill", "models/m/s0", {"metrics.parquet": "x"})
    for paper in ARMS:
        results.figure(f"{paper}/fig01", f"The {paper} paper", {"r": "models/m/s0"}, title=paper)
    results.claims(found, {})
    out = tmp_path / "out"
    out.mkdir()
    report.run(results.cfg, results.inputs, out)
    whole = (out / "report.html").read_text()
    for html in (page, whole):
        ids = re.findall(r' id="([^"]+)"', html)
        assert len(ids) == len({*ids})
        links = {*re.findall(r'href="#([^"]+)"', html)}
        assert links <= {*ids}
        for paper in ARMS:
            assert {f"claim:{paper}/same", f"claim:{paper}/start"} <= {*ids}
            assert f"claim:{paper}/same" in links
            assert html.count(f"<h3>The {paper} paper</h3>") == 1
            assert f"The {paper} paper: all 2, and what became of each" in html
        assert "<p>2 claims: 2 reproduced, 0 not reproduced" in html
        assert "<p>2 claims: 1 reproduced, 1 not reproduced" in html
        assert "<p>4 claims: 3 reproduced, 1 not reproduced" in html
    for paper, verdict in {"first": "reproduced", "second": "not reproduced"}.items():
        start = whole.index(f'id="figure:{paper}/fig01"')
        card = whole[start : whole.index("</figure>", start)]
        others = {"first": "second", "second": "first"}[paper]
        assert f'<a href="#claim:{paper}/same">same</a> ({verdict})' in " ".join(card.split())
        assert f"claim:{others}/" not in card
        assert ROWS[paper]["R2"] in card and ROWS[others]["R2"] not in card
        claim = whole[whole.index(f'id="claim:{paper}/same"') :]
        assert f'<a href="#figure:{paper}/fig01">fig01</a>' in claim[: claim.index("</article>")]
