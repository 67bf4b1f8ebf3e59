"""The generated parts of README.md and docs/: well-formed, and filled from results as they are."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import results

from opd.core.errors import UserError
from opd.recipes.resolve import read
from opd.results.claim_spec import parse, read_claims

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """# A page

Before.

<!-- fill: counts mini -->
<!-- end -->
<!-- fill: claims mini E04-recovery a_paper/E12-k -->
old
<!-- end -->

Between.

<!-- fill: claims mini -->
<!-- end -->
<!-- fill: table mini headline -->
<!-- end -->
<!-- fill: figure mini a_paper/fig06 -->
![Recovery](docs/figures/one.png)
<!-- end -->
<!-- fill: table pilot pilot -->
What was there.
<!-- end -->

After.
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A page, and a results folder with claims, a table and a figure but no pilot."""
    sample = results.sample(tmp_path).root
    found = results.found()
    for one in found["claims"]:
        for check in one["checks"]:
            check["shown"] = None if check["verdict"] == "not run" else "88.5 % | [85.0, 92.0]"
    (sample / "claims.json").write_text(json.dumps(found))
    (sample / "figures" / "a_paper" / "fig06.png").write_bytes(b"a picture")
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def test_parts_are_filled_and_the_rest_stays(readme: ModuleType, root: Path, capsys: Any) -> None:
    readme.main(root, root / "results")
    text = (root / "README.md").read_text()
    assert "4 claims of *A Paper (arXiv)*, scale mini, 3 seeds: 1 ✓ reproduced, 1 ✗ not" in text
    # Two claims by name, in that order; then every one that was run.
    first, second = re.findall(r"^\| (E\d\d-\w+): .* \| (.+) \| (.+) \|$", text, re.MULTILINE)[:2]
    assert first == ("E04-recovery", "✓ reproduced", "88.5\u00a0% \\| [85.0, 92.0]")
    assert second == ("E12-k", "○ not run", "–")
    assert re.findall(r"^\| (E\d\d-\w+):", text, re.MULTILINE)[2:] == [
        *("E04-recovery", "E04-failure", "E06-cold")
    ]
    assert "\nNot run: E12-k.\n" in text and "\nold\n" not in text
    assert "<br>it stays 0.01" in text  # several checks in a cell
    table = text[text.index("<!-- fill: table mini headline -->\n") :].splitlines()[1:]
    assert (
        table[0] == "|  | avg@4 (%) | change |" and "Seeds: 3." in table and "A title" not in text
    )
    assert (root / "docs" / "figures" / "one.png").read_bytes() == b"a picture"
    assert "![Recovery](docs/figures/one.png)\n<!-- end -->" in text
    for line in PAGE.splitlines():  # markers and what is written
        assert line == "old" or line in text.splitlines()
    said = capsys.readouterr().out
    assert "README.md: filled" in said
    assert f"left as it was, there is no {root / 'results/pilot/tables/pilot.md'}" in said
    assert "What was there." in text
    # A second time changes nothing.
    readme.main(root, root / "results")
    assert (root / "README.md").read_text() == text
    assert "README.md: filled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<!-- fill: counts mini -->\n", "README.md: the part 'counts mini' has no end"),
        ("text\n<!-- end -->\n", "README.md:2: an end without a part"),
        (
            "<!-- fill: counts mini -->\n<!-- fill: counts mini -->\n<!-- end -->\n",
            "README.md:2: a part within a part",
        ),
        ("<!-- fill: count mini -->\n<!-- end -->\n", "no kind 'count'; there are counts, claims"),
        ("<!-- fill: table mini -->\n<!-- end -->\n", "too few words; write table SCALE NAME"),
        ("<!-- fill: claims mini E99 -->\n<!-- end -->\n", "there is no 'E99'; mend the name"),
        (
            "<!-- fill: figure mini a_paper/fig06 -->\n<!-- end -->\n",
            "the part shows no image; write ![...](FILE)",
        ),
    ],
)
def test_a_part_that_cannot_be_filled_changes_nothing(
    readme: ModuleType, root: Path, page: str, said: str
) -> None:
    (root / "docs" / "other.md").write_text("<!-- fill: counts mini -->\n<!-- end -->\n")
    (root / "README.md").write_text(page)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        readme.main(root, root / "results")
    assert "\n" not in str(caught.value)
    assert (root / "README.md").read_text() == page
    assert (root / "docs" / "other.md").read_text().count("\n") == 2


def test_an_arm_of_several_terms_is_shown_by_its_terms(readme: ModuleType) -> None:
    text = readme.arms(Path("results/mini"), ["mini-followups"], "", Path("README.md"))
    (row,) = (line for line in text.splitlines() if line.startswith("| W4.beyond "))
    assert '"weight": 1.25' in row and '"reference": "small", "weight": -0.25' in row
    assert "their losses; 60 steps" in row and "None" not in text


def test_the_projects_own_parts_are_well_formed(readme: ModuleType, tmp_path: Path) -> None:
    """Every kind, claim, table, figure and image that they name is there, and filling them from
    nothing leaves them as they are."""
    scales = {
        "mini-all": ("mini.yaml", "mini-all.yaml"),
        "mini-unmasking": ("mini.yaml", "mini-unmasking.yaml"),
        "mini-followups": ("mini.yaml", "mini-followups.yaml"),
        "words-all": ("mini.yaml", "mini-all.yaml", "words.yaml", "words-all.yaml"),
        "pilot": ("pilot.yaml",),
        "pilot-unmasking": ("pilot.yaml", "pilot-unmasking.yaml"),
    }
    shown = {
        scale: read([ROOT / "config" / name for name in names]) for scale, names in scales.items()
    }
    claims = {
        scale: {
            claim.id
            for paper in config.papers
            for claim in parse(read_claims(ROOT / f"config/claims/{paper}.yaml")["claims"])
        }
        for scale, config in shown.items()
    }
    named = []
    for page in readme.pages(ROOT):
        for words, inner in readme.parts(page.read_text(), page.name):
            if not words:
                continue
            kind, scale, *names = words
            named.append(kind)
            assert kind in readme.KINDS and inner.strip(), words
            if kind == "claims":
                assert {*names} <= claims[scale]
            if kind == "table":
                assert {*names} <= {*shown[scale].tables}
            if kind == "figure":
                (name,) = names
                paper, _, own = name.rpartition("/")
                figures = (ROOT / f"config/figures/{paper}.yaml").read_text() if paper else ""
                assert f"\n{own}:" in figures if paper else own in shown[scale].figures
        for image in re.findall(readme.IMAGE, page.read_text()):
            assert (page.parent / image).is_file(), image
    assert {*named} == {*readme.KINDS}
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    readme.main(tmp_path, tmp_path / "results")
    for page in readme.pages(ROOT):
        assert (tmp_path / page.relative_to(ROOT)).read_text() == page.read_text()


def test_runs_are_those_of_the_arms(readme: ModuleType) -> None:
    """A row for each arm that a distillation makes, none for the others."""
    lines = readme.runs(Path("paper"), [], "", Path("page.md")).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    config = read([ROOT / "config" / "paper.yaml"])
    assert [row[0] for row in rows] == [name for name, arm in config.arms.items() if arm.teacher]
    (row,) = (row[:7] for row in rows if row[0] == "E12.k4")
    assert row == ["E12.k4", "k-4", "r1-1.5b", "justrl", "dapo", "279", "7,168"]
    assert {row[7] for row in rows if row[0].startswith("E12")} == {
        "sampled",
        *(f"rethinking_code, k = {k}" for k in (1, 4, 16, 64)),
    }


def test_links_between_pages_lead_somewhere(readme: ModuleType) -> None:
    def anchors(page: Path) -> set[str]:
        heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
        return {head.replace(" ", "-") for head in plain}

    for page in readme.pages(ROOT):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in path:
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
