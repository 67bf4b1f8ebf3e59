"""The digest of a stage's code, blind to where the code lies.

The digest of a module covers its syntax tree and, in the place of each import from this package,
the digest of the module that is imported. So a module that moves, or is renamed, changes nothing;
comments, docstrings, annotations' imports and the texts of errors change nothing; everything else
that a stage could do differently changes the digest of every module that uses it.
"""

import ast
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE, ROOT = "opd", Path(__file__).parents[1]
# Its arguments are read by people alone: no stage writes them into what it makes (a test).
ERROR = "UserError"
# The one way to a file of the package that is not a module: ``package_file(__file__, NAME)``.
READS = "package_file"

_IMPORTS = (ast.Import, ast.ImportFrom)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def package_file(module_file: str, name: str) -> Path:
    """A file or folder of the package that lies beside a module, which names itself by its
    ``__file__``. Its content belongs to the digest of that module."""
    return Path(module_file).parent / name


def module_file(module: str, root: Path) -> Path | None:
    """The file of a module of this package, whose folder is ``root``; None where there is none.
    Nothing is imported to find it: a digest of what trains must not load torch."""
    path = os.path.join(root, *module.split(".")[1:])
    candidates = (os.path.join(path, "__init__.py"), f"{path}.py")
    return next((Path(file) for file in candidates if os.path.isfile(file)), None)


class _Writer(NamedTuple):
    """Writes the syntax tree of one module as plain values, the same under every Python version:
    lists that are empty and fields that are None are left out, as they are where a version does
    not know the field. ``refer`` says what stands for another module of the package."""

    module: str
    root: Path
    refer: Callable[[str], str]

    def file(self) -> Path:
        file = module_file(self.module, self.root)
        if file is None:
            raise ModuleNotFoundError(self.module)
        return file

    def digest(self) -> str:
        tree = ast.parse(self.file().read_text(), str(self.file()))
        return sha256(json.dumps(self.plain(tree), sort_keys=True).encode()).hexdigest()

    def plain(self, value: Any) -> Any:
        if isinstance(value, list):
            is_body = bool(value) and isinstance(value[0], ast.stmt)
            return [*self.statements(value)] if is_body else [*map(self.plain, value)]
        if not isinstance(value, ast.AST):
            return value
        if isinstance(value, ast.Constant):
            return self.constant(value.value)
        if isinstance(value, ast.Raise) and _named(value.exc) == ERROR:
            return ["Raise", ERROR, self.plain(value.cause)]
        written: dict[str, Any] = {}
        for name in value._fields:
            field: Any = getattr(value, name, None)
            if name == "body" and isinstance(value, _DOCUMENTED) and _documented(value):
                field = field[1:]
            # Names and what they are used for are most of a tree.
            if isinstance(field, str):
                written[name] = field
            elif isinstance(field, ast.expr_context):
                written[name] = [type(field).__name__, {}]
            elif field is not None and (plain := self.plain(field)) not in (None, []):
                written[name] = plain
        if isinstance(value, ast.Call) and _named(value) == READS:
            written["content"] = [self.content(name) for name in value.args[1:]]
        return [type(value).__name__, written]

    def statements(self, body: Sequence[ast.stmt]) -> Iterator[Any]:
        """A block. Imports that stand together come in an order that no name decides, those of
        this package last; what is imported for annotations alone is left out."""
        own: list[Any] = []
        for statement in body:
            if isinstance(statement, ast.If) and _named(statement.test) == "TYPE_CHECKING":
                yield from self.statements(statement.orelse)
            elif isinstance(statement, _IMPORTS) and self.imported(statement):
                own += self.imported(statement)
            else:
                if not isinstance(statement, _IMPORTS):
                    yield from sorted(own)
                    own = []
                if not isinstance(statement, ast.Pass):  # as a block without a docstring needs
                    yield self.plain(statement)
        yield from sorted(own)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> list[list[str]]:
        """[digest of a module of this package, name that is taken from it or '', local name] of
        all that a statement imports; nothing for other packages."""
        if isinstance(statement, ast.Import):
            if any(alias.name.partition(".")[0] == PACKAGE for alias in statement.names):
                raise ValueError(f"{self.module}: write 'from {PACKAGE}... import ...'")
            return []
        source = statement.module or ""
        if statement.level or source.partition(".")[0] != PACKAGE:
            return []
        taken = []
        for alias in statement.names:
            inner = f"{source}.{alias.name}"
            is_module = module_file(inner, self.root) is not None
            module, name = (inner, "") if is_module else (source, alias.name)
            taken.append([self.refer(module), name, alias.asname or alias.name])
        return taken

    def constant(self, value: Any) -> Any:
        if isinstance(value, str):
            name, _, rest = value.partition(":")
            if name == self.module:
                return ["itself", rest]
            if re.fullmatch(rf"{PACKAGE}(\.\w+)+", name) and module_file(name, self.root):
                return ["module", self.refer(name), rest]
            return value
        return [type(value).__name__, repr(value)]

    def content(self, name: ast.expr) -> dict[str, str]:
        """File -> sha256 of a file of the package, or of all files in a folder of it."""
        if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
            raise ValueError(f"{self.module}: {READS} needs the name as it stands")
        path = self.file().parent / name.value
        if not path.exists():
            raise FileNotFoundError(path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return {
            file.relative_to(path).as_posix(): sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file() and "__pycache__" not in file.parts
        }


def _documented(value: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(value, clean=False) is not None


def _named(value: ast.AST | None) -> str:
    """The name of a name, or of what is called."""
    if isinstance(value, ast.Call):
        value = value.func
    return value.id if isinstance(value, ast.Name) else ""


_digests: dict[tuple[Path, str], str] = {}


def module_digest(module: str, root: Path = ROOT) -> str:
    """Digest of a module of this package and of all that it imports from it, at any depth.

    ``root`` is the folder of the package, the installed one if not given. Raises ``ValueError``
    where modules import each other in a circle: no digest could name one before the other.
    """
    return _module_digest(module, root, ())


def _module_digest(module: str, root: Path, importing: tuple[str, ...]) -> str:
    if module in importing:
        circle = " -> ".join((*importing[importing.index(module) :], module))
        raise ValueError(f"modules import each other: {circle}")
    if (root, module) not in _digests:
        inside = (*importing, module)
        writer = _Writer(module, root, lambda used: _module_digest(used, root, inside))
        _digests[root, module] = writer.digest()
    return _digests[root, module]


@cache
def own_digests(module: str, root: Path = ROOT) -> dict[str, str]:
    """Module -> digest of its own code alone, for all that ``module_digest`` covers: what tells
    which of them was changed."""
    digests: dict[str, str] = {}
    queue = [module]

    def refer(used: str) -> str:
        queue.append(used)
        return used

    while queue:
        name = queue.pop()
        if name not in digests:
            digests[name] = _Writer(name, root, refer).digest()
    return digests
