"""Every path that is printed of an artifact names it, in a plan and in a results folder."""

import json
from pathlib import Path

import pytest
from results import sample

from opd.core.errors import UserError
from opd.stages import naming

FOLDERS = [
    "prompts/rl",
    "models/small/s0",
    "models/small/s1",
    "models/small.md/s0",
    "generations/small/s0",
    "evaluations/held-out/small/s0",
    "evaluations/held-out/small/s1",
    "probes/E11.success/s0",
    "figures/a_paper/fig06",
    "figures/b_paper/fig06",
    "tables/headline",
    "claims",
    "report",
]


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("tables/headline", ["tables/headline"]),
        ("results/mini/tables/headline", ["tables/headline"]),
        ("./results/mini/tables/headline/", ["tables/headline"]),
        ("/elsewhere/results/mini/tables/headline.csv", ["tables/headline"]),
        ("mini/tables/headline", ["tables/headline"]),
        ("headline", ["tables/headline"]),
        ("headline.md", ["tables/headline"]),
        ("tables/headline/digest.json", ["tables/headline"]),
        ("tables/headline/manifest.json", ["tables/headline"]),
        ("tables/headline/payload", ["tables/headline"]),
        ("results/mini/tables/headline/payload/table.csv", ["tables/headline"]),
        ("results/mini/logs/tables/headline.log", ["tables/headline"]),
        ("results/mini/report.html", ["report"]),
        ("report", ["report"]),
        ("claims.json", ["claims"]),
        ("models/small/s0/running.json", ["models/small/s0"]),
        ("models/small", ["models/small/s0", "models/small/s1"]),
        ("models/small.md", ["models/small.md/s0"]),
        # The artifact itself goes before what was made from it.
        ("small/s1", ["models/small/s1"]),
        ("small/s0", ["models/small/s0", "generations/small/s0"]),
        ("held-out/small", ["evaluations/held-out/small/s0", "evaluations/held-out/small/s1"]),
        ("E11.success", ["probes/E11.success/s0"]),
        ("fig06", ["figures/a_paper/fig06", "figures/b_paper/fig06"]),
        ("b_paper/fig06.svg", ["figures/b_paper/fig06"]),
        ("tables", ["tables/headline"]),
        *((name, []) for name in ("headlin", "ig06", "s", "", ".", "results/mini", "payload")),
    ],
)
def test_what_a_name_means(name: str, folders: list[str]) -> None:
    assert naming.matching(name, FOLDERS, "mini") == folders


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("headlin", "--x: no artifact is called 'headlin'; did you mean 'headline'?"),
        ("results/mini/tables/headlin.csv", "'results/mini/tables/headlin.csv'; did you mean 'tab"),
        ("models/smal/s1", "did you mean 'models/small/s1'?"),
        (
            "zzz",
            "no artifact is called 'zzz'; name one of claims, evaluations/.., figures/.., "
            "generations/.., models/.., probes/.., prompts/.., report, tables/..",
        ),
        (
            "results/pilot/tables/headline",
            "--x: results/pilot/tables/headline is of another config, this one is mini; name its "
            "files with --configfile",
        ),
    ],
)
def test_a_name_that_nothing_has_is_an_error_with_the_one_that_was_meant(
    name: str, line: str
) -> None:
    with pytest.raises(UserError) as error:
        naming.named(name, FOLDERS, "mini", "--x")
    assert line in str(error.value)


def test_one_of_several_is_the_model_or_is_asked_for() -> None:
    assert naming.single("small/s0", FOLDERS, "mini", "--x") == "models/small/s0"
    with pytest.raises(UserError, match=r"--x: 'fig06' may be figures/a_.*, figures/b_.*fig06; g"):
        naming.single("fig06", FOLDERS, "mini", "--x")


def test_an_artifact_is_found_by_its_folder_a_file_a_copy_and_the_end_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = sample(tmp_path)
    root = results.root
    expected = {
        "tables/headline": "tables/headline",
        "tables/headline.csv": "tables/headline",
        "figures/a_paper/fig06.svg": "figures/a_paper/fig06",
        "models/small/s0/payload/w": "models/small/s0",
        "models/small/s0/digest.json": "models/small/s0",
        "logs/models/small-from-large/s0.log": "models/small-from-large/s0",
        "small/s0": "models/small/s0",
        "E11.success/s0": "probes/E11.success/s0",
        "small-from-large": "models/small-from-large/s0",
    }
    monkeypatch.chdir(tmp_path)
    for name, folder in expected.items():
        for given in (root / name, Path("results/mini") / name, Path(name), Path("mini") / name):
            made = naming.locate(given)
            assert (made.folder, made.root) == (folder, root), given


def test_what_is_not_there_is_an_error_that_says_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = sample(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no artifact is called 'headlin'; did you mean 'headline'"):
        naming.locate(Path("headlin"))
    with pytest.raises(UserError, match="results/mini: a folder of results is no artifact"):
        naming.locate(Path("results/mini"))
    with pytest.raises(UserError, match="min: no such folder of results; did you mean 'mini'"):
        naming.locate(Path("results/min"))
    results.add("figure", "figures/b_paper/fig06", {"figure.svg": "x"})
    with pytest.raises(UserError, match=r"'fig06' may be results/mini/figures/a_paper/fig06, "):
        naming.locate(Path("fig06"))
    (results.root / "plan.json").write_text(json.dumps({"models/planned/s0": {}}))
    with pytest.raises(UserError) as error:
        naming.locate(Path("planned"))
    assert str(error.value) == (
        "results/mini/models/planned/s0: it has not been made; have snakemake make "
        "results/mini/models/planned/s0/digest.json"
    )
    sample(tmp_path / "other", "mini").root.rename(tmp_path / "results" / "mine")
    with pytest.raises(UserError, match="may be results/mine/tables/headline, results/mini/tables"):
        naming.locate(Path("headline"))
