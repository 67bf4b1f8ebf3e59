"""The digest of code: what changes it, what does not, and which stages feel an edit."""

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import opd
from opd.core.code import _Writer, module_digest, own_digests
from opd.stages.registry import STAGES

pytestmark = pytest.mark.unit
PACKAGE = Path(opd.__file__).parent

FILES = {
    "__init__.py": "",
    "top.py": (
        '"""Documented."""\n\nimport math\n\nfrom opd.inner.leaf import PI, area\n'
        "from opd.inner.other import half\nfrom opd.errors import UserError\n\n\n"
        'def run(radius=1.0):\n    """Documented."""\n    if radius < 0:\n'
        '        raise UserError("below 0", "radius", "raise it")\n'
        "    return half(area(radius)) + math.sqrt(PI)\n"
    ),
    "errors.py": "class UserError(Exception):\n    pass\n",
    "inner/__init__.py": "",
    "inner/leaf.py": (
        "from opd.code import package_file\n\nPI = 3\nWORDS = package_file(__file__, 'words')\n\n\n"
        "def area(radius):\n    return PI * radius**2\n"
    ),
    "inner/other.py": "TWO = 2\n\n\ndef half(value):\n    return value / TWO\n",
    "inner/words/one.txt": "one",
    "code.py": "def package_file(file, name):\n    return name\n",
    "unused.py": "x = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., str]:
    """Writes the package with some files changed (None: without it); returns a digest of it."""
    count = iter(range(100))

    def write(changed: dict[str, str | None] | None = None, module: str = "opd.top") -> str:
        root = tmp_path / str(next(count)) / "opd"
        for name, text in {**FILES, **(changed or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_text(text)
        return module_digest(module, root)

    return write


def edited(name: str, old: str, new: str) -> dict[str, str | None]:
    assert old in FILES[name]
    return {name: FILES[name].replace(old, new)}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("top.py", '"""Documented."""\n\nimport', '"""Said otherwise."""\n\nimport'),
        ("top.py", '    """Documented."""\n    if', "    # why\n    if"),
        ("top.py", '"below 0", "radius"', 'f"{radius} is below 0", "the radius"'),
        ("top.py", "import math\n\n", "import math\n\n# a comment\n"),
        ("top.py", "import PI, area", "import area, PI"),
        ("errors.py", "    pass", '    """A reason, a place and a remedy."""'),
        ("unused.py", "1", "2"),
    ],
)
def test_what_changes_nothing_that_a_stage_does_changes_no_digest(package, name, old, new):
    assert package(edited(name, old, new)) == package()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("inner/leaf.py", "PI = 3", "PI = 4"),
        ("inner/other.py", "value / TWO", "value * TWO"),
        ("top.py", "radius=1.0", "radius=2.0"),
        ("top.py", "radius < 0", "radius <= 0"),
        ("top.py", "import half", "import TWO as half"),
        ("top.py", "raise UserError(", "raise ValueError("),
        ("inner/words/one.txt", "one", "two"),
        ("top.py", "import math\n", "import cmath as math\n"),
    ],
)
def test_what_a_stage_could_do_otherwise_changes_its_digest(package, name, old, new):
    assert package(edited(name, old, new)) != package()


def test_an_edit_reaches_those_that_import_it_and_no_others(package):
    changed = edited("inner/other.py", "TWO = 2", "TWO = 3")
    assert package(changed, "opd.inner.other") != package(None, "opd.inner.other")
    assert package(changed, "opd.inner.leaf") == package(None, "opd.inner.leaf")


def test_a_module_that_moves_under_another_name_changes_no_digest(package):
    """Also where its own import then sorts to another place."""
    moved = {
        "inner/leaf.py": None,
        "inner/words/one.txt": None,
        "zone/__init__.py": "",
        "zone/geometry.py": FILES["inner/leaf.py"],
        "zone/words/one.txt": "one",
        "top.py": FILES["top.py"]
        .replace("from opd.inner.leaf import PI, area\n", "")
        .replace(
            "import UserError\n", "import UserError\nfrom opd.zone.geometry import PI, area\n"
        ),
    }
    assert package(moved) == package()


def test_a_module_named_by_a_string_counts_with_its_code(package):
    names = {"top.py": 'RUN = "opd.inner.other:half"\n'}
    assert package(names) != package({**names, **edited("inner/other.py", "2", "3")})
    own = {"top.py": 'RUN = "opd.top:run"\n'}
    assert package(own) == package(own)


def test_what_is_imported_for_annotations_alone_does_not_count(package):
    typed = FILES["top.py"].replace(
        "import math\n",
        "import math\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from opd.unused import x\n",
    )
    with_other = {"top.py": typed, "unused.py": "x = 2\n"}
    assert package({"top.py": typed}) == package(with_other)


def test_modules_in_a_circle_are_refused(package):
    with pytest.raises(ValueError, match=r"opd\.top -> opd\.inner\.other -> opd\.top"):
        package({"inner/other.py": "from opd.top import run\n\n\ndef half(x):\n    return x\n"})


def test_what_one_python_version_adds_to_the_tree_changes_nothing(tmp_path):
    """Fields that are None or empty, as type_params=[] of functions since Python 3.12, or
    type_comment, are what a version that does not know them has."""
    writer = _Writer("opd.x", tmp_path, str)
    (function,) = ast.parse("def f(x: int = 1, *, y=None): return x").body
    plain = writer.plain(function)
    function.type_params, function.type_comment, function.later = [], None, None
    function._fields = (*ast.FunctionDef._fields, "type_params", "later")
    assert writer.plain(function) == plain
    assert "None" in str(plain) and plain != writer.plain(
        ast.parse("def f(x: int = 1, *, y): return x").body[0]
    )


def test_values_of_other_types_are_other_constants(tmp_path):
    texts = ["1", "True", "1.0", "'1'", "b'1'", "None", "'None'", "...", "1j", "[]", "()", "{}"]
    writer = _Writer("opd.x", tmp_path, str)
    plain = [str(writer.plain(ast.parse(f"x = {text}"))) for text in texts]
    assert len({*plain}) == len(texts)


# This package


def modules_of_stages() -> set[str]:
    found: set[str] = set()
    for stage in STAGES.values():
        found |= own_digests(stage.run.partition(":")[0]).keys()
    return found


def source(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return ast.parse(
        (path.with_suffix(".py") if not path.is_dir() else path / "__init__.py").read_text()
    )


def test_no_stage_makes_anything_of_the_text_of_an_error():
    """The text is left out of the digest, so it may not be in what is made: whoever catches a
    ``UserError`` uses it to raise again, at once, from another process, for a key of a file, for a
    term of a sum, for a source of rollouts or past what would not try a run again."""
    hand_over = {"resume", "launch", "vllm_pool", "vllm_engine", "verified", "verify", "schema"}
    hand_over |= {"distill", "sources", "servers"}
    for module in modules_of_stages():
        for node in ast.walk(source(module)):
            if not isinstance(node, ast.ExceptHandler) or not node.name or node.type is None:
                continue
            if "UserError" not in {x.id for x in ast.walk(node.type) if isinstance(x, ast.Name)}:
                continue
            raised = {
                id(x)
                for r in ast.walk(node)
                if isinstance(r, ast.Raise)
                for x in ast.walk(r.cause or r)
            }
            used = [
                x
                for x in ast.walk(node)
                if isinstance(x, ast.Name) and x.id == node.name and id(x) not in raised
            ]
            assert not used or module.rpartition(".")[2] in hand_over, (module, node.lineno)


def test_only_what_the_digest_sees_reads_files_of_the_package():
    """``package_file`` is the one way: the task files, whose texts are in settings, are the
    exception."""
    for module in modules_of_stages() - {"opd.evaluation.tasks", "opd.core.code"}:
        text = (PACKAGE.joinpath(*module.split(".")[1:])).with_suffix(".py")
        if text.is_file():
            calls = re.sub(r"package_file\(__file__,", "", text.read_text())
            assert "__file__" not in calls and "importlib.resources" not in calls, module


def test_packages_hold_no_code_that_runs_when_a_module_in_them_is_imported():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(x, ast.Expr) for x in body), path


def digests(root: Path) -> dict[str, str]:
    return {
        name: module_digest(stage.run.partition(":")[0], root) for name, stage in STAGES.items()
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "opd"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        # A constant, a default, an operator, an imported name, a file, and what no stage imports.
        (
            "losses/token.py",
            "= -100.0",
            "= -99.0",
            {"distill", "pair", "signal", "indicators", "score"},
        ),
        (
            "losses/fused.py",
            "temperature: float = 1.0",
            "temperature: float = 2.0",
            {"distill", "indicators"},
        ),
        ("training/sft.py", "<=", "<", {"sft"}),
        ("data/world.py", "HELD_OUT_ONE_IN = 4", "HELD_OUT_ONE_IN = 5", {"prompts", "corpus"}),
        (
            "stats/significance.py",
            "default_rng(0)",
            "default_rng(1)",
            {"pool", "alignment", "forecast", "outcome"},
        ),
        ("evaluation/benchmarks/functions.py", "graded_boxed", "graded_choice", {"evaluate"}),
        ("stages/registry.py", '"train by rewards"', '"reinforce"', set()),
        ("cli/main.py", '"opd"', '"ops"', set()),
    ],
)
def test_an_edit_of_this_package_reruns_the_stages_that_use_it(copy, file, old, new, stages):
    before, path = digests(PACKAGE), copy / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    after = digests(copy)
    assert {name for name in STAGES if before[name] != after[name]} == stages


def test_an_error_s_text_in_this_package_reruns_nothing(copy):
    before = digests(PACKAGE)
    count = 0
    for path in copy.rglob("*.py"):
        text = path.read_text()
        worded = re.sub(r"(raise UserError\(\s*f?\")", r"\1In other words: ", text)
        count += worded != text
        path.write_text(worded)
    assert count > 40
    assert digests(copy) == before


@pytest.mark.parametrize(
    ("template", "stages"),
    [
        ("results/pages/report/report.html.j2", {"report"}),
        ("results/pages/claims/claims.md.j2", {"claims", "report"}),
        ("results/pages/figures/caption.md.j2", {"figure"}),
        ("data/pages/contamination/contamination.html.j2", {"contamination"}),
    ],
)
def test_a_word_of_a_page_reruns_the_stages_that_write_it_alone(tmp_path, template, stages):
    copy = tmp_path / "opd"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / template
    path.write_text(f"{path.read_text()}A word.\n")
    before, after = digests(PACKAGE), digests(copy)
    assert {name for name in STAGES if before[name] != after[name]} == stages
