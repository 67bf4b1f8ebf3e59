"""Digests of plain values, of files and of code, and reading JSON."""

import ast
import hashlib
import importlib.util
import json
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from opd.errors import Bad


def canonical(value: Any) -> str:
    """The one JSON text of a plain value (sorted keys, no NaN), the base of every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(path: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder (or of the one file ``path``)."""
    if path.is_file():
        return {path.name: file_digest(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): file_digest(p) for p in files}


@cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """Syntax tree of a module without comments and docstrings, and the opd modules it imports."""
    spec = _spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(Path(spec.origin).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module)
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    own = sorted(m for m in imported if m.startswith("opd.") and _spec(m))
    return ast.dump(tree), tuple(own)


def _spec(module: str) -> ModuleSpec | None:
    """Where a module lies. Nothing is imported for it, as ``importlib.util.find_spec`` would import
    all that is above: a digest of what trains must not load torch."""
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec


@cache
def module_digest(module: str) -> str:
    """Digest of the syntax trees of a module and of every ``opd`` module that is imported from
    there, at any depth. Comments and docstrings do not count."""
    found: dict[str, str] = {}
    queue = [module]
    while queue:
        module = queue.pop()
        if module not in found:
            found[module], imports = _source(module)
            queue.extend(imports)
    return digest(found)


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ``Bad`` where it is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Bad(f"not readable as JSON ({error})", str(path), "make it again") from error
