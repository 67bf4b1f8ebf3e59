"""Fill the generated parts of README.md and docs/*.md from finished results (`make readme`).

    python scripts/readme.py [RESULTS]

A part stands between `<!-- fill: KIND SCALE ... -->` and `<!-- end -->`, each on a line of its own:

    counts SCALE          how many claims of each paper have which verdict
    claims SCALE [ID ...] what was measured of these claims (ID, or PAPER/ID), or of all
    table SCALE TABLE     a table with its note
    figure SCALE FIGURE   copies the figure to the image that the part shows
    arms CONFIG ...       what arms and probes of papers are in these configs, laid over each other
    runs CONFIG           the distillation runs of config/CONFIG.yaml, arm by arm

SCALE is a folder of RESULTS, `results` if not given. What is not there leaves its part as it is.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.recipes.models import Distill, Grpo, Model, Sft
from opd.recipes.probes import Probe
from opd.recipes.resolve import read
from opd.results import claims_page
from opd.results.claim_spec import read_claims

START, END = re.compile(r"<!-- fill: (.*) -->"), "<!-- end -->"
IMAGE = re.compile(r"!\[[^]]*\]\(([^)]+)\)")
CONFIGS = Path(__file__).parents[1] / "config"


def parts(text: str, where: str) -> list[tuple[list[str], str]]:
    """(words, text) of a page part by part; what is not generated has no words.

    Raises ``UserError`` for a part that is not closed, and for an end without a part.
    """
    made: list[tuple[list[str], str]] = []
    words: list[str] = []
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        at, start = f"{where}:{number}", START.fullmatch(line.strip())
        if start and words:
            raise UserError("a part within a part", at, f"write {END} before it")
        if line.strip() == END and not words:
            raise UserError("an end without a part", at, "write <!-- fill: ... --> before it")
        if start or line.strip() == END:
            made.append((words, "".join(lines)))
            words, lines = start[1].split() if start else [], []
        else:
            lines.append(line)
    if words:
        raise UserError(f"the part '{' '.join(words)}' has no end", where, f"write {END} after it")
    return [*made, ([], "".join(lines))]


def filled(text: str, fill: Callable[[list[str], str], str], where: str) -> str:
    """A page with what ``fill`` makes of each part's words and text."""
    made = []
    for words, inner in parts(text, where):
        if words:
            inner = f"<!-- fill: {' '.join(words)} -->\n{fill(words, inner).strip()}\n{END}\n"
        made.append(inner)
    return "".join(made)


def fill(results: Path, page: Path, left: list[str], words: list[str], inner: str) -> str:
    """The text of a part. Where a result is not there, that goes to ``left`` and the text stays.

    Raises ``UserError`` for a kind, or for a claim, that does not exist.
    """
    (kind, *names), where = words, f"{page}: {' '.join(words)}"
    if kind not in KINDS:
        raise UserError(f"no kind '{kind}'", where, f"there are {', '.join(KINDS)}")
    make, few = KINDS[kind]
    if len(names) < few:
        raise UserError("too few words", where, f"write {kind} {' '.join(('SCALE', 'NAME')[:few])}")
    try:
        return make(results / names[0], names[1:], inner, page)
    except FileNotFoundError as missing:
        left.append(str(missing.filename))
        return inner
    except KeyError as missing:
        raise UserError(f"there is no {missing}", where, "mend the name") from missing


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _claims(folder: Path) -> dict[str, Any]:
    if not (folder / "claims.json").is_file():
        raise FileNotFoundError(0, "", str(folder / "claims.json"))
    results: dict[str, Any] = read_json(folder / "claims.json")
    return results


def counts(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    results = _claims(folder)
    many = len(results["seeds"])
    lines = [
        f"{sum(about['counts'].values())} claims of *{about['title']}*, scale {results['scale']}, "
        f"{f'{many} seeds' if many > 1 else 'one seed'}: "
        f"{claims_page.headline({**results, **about}, claims_page.mark)}"
        f"{claims_page.ours({**results, **about}, claims_page.mark)}."
        for about in results["papers"].values()
    ]
    return "\n\n".join(lines)


def claims(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    results = _claims(folder)
    if not names:
        return "\n\n".join(_all(results, paper) for paper in results["papers"])
    named = {f"{claim['paper']}/{claim['id']}": claim for claim in results["claims"]}
    named |= {claim["id"]: claim for claim in results["claims"]}
    published = ["published"] if results["comparable"] else []
    lines = [_row(["claim", "verdict", "measured", *published])]
    lines.append(_row(["---"] * (3 + len(published))))
    for name in names:
        claim = named[name]
        measured = [check["shown"] or "–" for check in claim["checks"]]
        cells = [f"{claim['id']}: {claim['statement']}", claims_page.verdict_of(claim)]
        cells += ["<br>".join(dict.fromkeys(measured))]
        cells += [claims_page.published_briefly(claim)] if published else []
        lines.append(_row([claims_page.unbroken(_cell(cell)) for cell in cells]))
    return "\n".join(lines)


def _all(results: Mapping[str, Any], paper: str) -> str:
    """Every claim of a paper that was run, and the names of the others."""
    lines = [f"### {results['papers'][paper]['title']}", ""] if len(results["papers"]) > 1 else []
    lines += [_row(["claim", "verdict", "measured"]), _row(["---"] * 3)]
    absent = []
    for claim in results["claims"]:
        if claim["paper"] != paper:
            continue
        if claim["verdict"] == "not run":
            absent.append(claim["id"])
            continue
        measured = "<br>".join(_cell(check["text"]) for check in claim["checks"])
        statement = f"{claim['id']}: {_cell(claim['statement'])}"
        lines.append(_row([statement, claims_page.verdict_of(claim), measured]))
    return "\n".join([*lines, *(["", f"Not run: {', '.join(absent)}."] if absent else [])])


def table(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    lines = (folder / "tables" / f"{names[0]}.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    return "\n".join(lines[first:])


def figure(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    image = IMAGE.search(inner)
    if not image:
        raise UserError(
            "the part shows no image", f"{page}: figure {names[0]}", "write ![...](FILE)"
        )
    shutil.copyfile(folder / "figures" / f"{names[0]}.png", page.parent / image[1])
    return inner


def arms(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    config = read([CONFIGS / f"{name}.yaml" for name in (folder.name, *names)])
    meant: dict[str, str] = {}
    for paper in config.papers:
        declared = read_claims(CONFIGS / "claims" / f"{paper}.yaml")
        meant |= declared["arms"] | declared["probes"]
    here = {name: _model(config.models[arm.model], arm.model) for name, arm in config.arms.items()}
    here |= {name: _probe(probe) for name, probe in config.probes.items() if name in meant}

    def place(name: str) -> list[str]:
        """A9 before A10."""
        parts = re.split(r"(\d+)", name.partition(".")[0])
        return [part.zfill(3) if part.isdigit() else part for part in parts]

    rows = [[name, meant[name], here[name]] for name in sorted(here, key=place)]
    head = ["arm or probe", "in the paper", "here"]
    return "\n".join(_row([_cell(cell) for cell in row]) for row in (head, ["---"] * 3, *rows))


def _informed(information: Any) -> str:
    if information in (None, "none"):
        return ""
    return f", told `{information}`" if isinstance(information, str) else ", told otherwise"


def _model(model: Model, name: str) -> str:
    """A model in a few words: what it is fetched as, or what it is trained from and how."""
    run = model.trained
    if run is None:
        return f"`{model.hub.id if model.hub else name}`"
    length = f"{run.steps} steps" if run.steps else f"{getattr(run, 'epochs', None)} epochs"
    match run:
        case Distill():
            terms = [term.model_dump(exclude_unset=True) for term in run.terms or []]
            teacher = " + ".join(f"`{json.dumps(term)}`" for term in terms)
            pair = f"`{name}`: `{run.student}` ← {teacher or f'`{run.teacher or run.scores}`'}"
            loss = f"`{run.loss.preset}`" + (f", k = {run.loss.k}" if run.loss.k else "")
            if terms and all({*term} & {"loss", "reward"} for term in terms):
                loss = "their losses"
            on = f"{_informed(run.information)}, on `{run.prompts}`; {loss}; {length}"
            return f"{pair}{on}, measured at k = {run.metrics_k}"
        case Grpo():
            information = _informed(run.information)
            return f"`{name}`: `{run.student}` after GRPO on `{run.prompts}`{information}; {length}"
        case Sft():
            return f"`{name}`: `{run.student}` after SFT on `{run.data}`; {length}"


def _probe(probe: Probe) -> str:
    """A probe in a few words: its kind, the rollouts and models that it reads, what is told."""
    recipe = getattr(probe, probe.kind)
    read = [getattr(recipe, key, None) for key in ("generations", "teacher", "judge")]
    information = _informed(getattr(recipe, "information", None))
    return f"`{probe.kind}` of {', '.join(f'`{name}`' for name in read if name)}{information}"


def runs(folder: Path, names: Sequence[str], inner: str, page: Path) -> str:
    config = read([CONFIGS / f"{folder.name}.yaml"])
    heads = ["arm", "run", "student", "teacher", "prompts", "steps", "response tokens", "loss"]
    lines = [_row(heads), _row(["---"] * 5 + ["---:"] * 2 + ["---"])]
    for name, arm in config.arms.items():
        run = config.models[arm.model.partition("@")[0]].distill
        if run is None:
            continue
        given = run.loss.model_dump(exclude_none=True)
        loss = ", ".join([given.pop("preset"), *(f"{key} = {n}" for key, n in given.items())])
        longest = f"{run.max_new_tokens:,}"
        about = [run.student, run.teacher, run.prompts, str(run.steps), longest, loss]
        lines.append(_row([name, arm.model, *about]))
    return "\n".join(lines)


# Kind -> what makes its text, and how many words it needs at the least.
KINDS = {
    "counts": (counts, 1),
    "claims": (claims, 1),
    "table": (table, 2),
    "figure": (figure, 2),
    "arms": (arms, 1),
    "runs": (runs, 1),
}


def pages(root: Path) -> list[Path]:
    """What has generated parts."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main(root: Path, results: Path) -> None:
    """Fill the pages below ``root``, and say of each what was left as it was."""
    made, left = {}, {}
    for page in pages(root):
        missing: list[str] = []
        made[page] = filled(page.read_text(), partial(fill, results, page, missing), page.name)
        left[page] = missing
    for page, text in made.items():
        if text != page.read_text():
            page.write_text(text)
            print(f"{page}: filled")
        for missing in dict.fromkeys(left[page]):
            print(f"{page}: left as it was, there is no {missing}")


if __name__ == "__main__":
    try:
        main(Path(), Path(*sys.argv[1:2] or ["results"]))
    except UserError as bad:
        sys.exit(f"error: {bad}")
