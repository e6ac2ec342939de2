"""Digests of the code that a result depends on, and the versions of packages that it ran with.

If the digest of a result changes, the result is stale and has to be computed again. The digest
covers the modules in which the computation starts, and those that they import directly or
indirectly, as far as `DECIDING` names them. Modules are read as syntax trees. Comments, docstrings,
layout, type annotations, calls of a logger and the texts of errors change no number, so they do not
count. Of data files, every byte counts.
"""

import ast
import hashlib
import platform
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from blocklora.files import file_digest

PACKAGE = Path(__file__).resolve().parent

# Modules and packages that can change numbers. All others read and write files, pass values on,
# write records, log and lock.
DECIDING = (
    "blocklora.adapters",
    "blocklora.backbones.shape",
    "blocklora.backbones.model",
    "blocklora.backbones.checkpoints",
    "blocklora.backbones.prompts",
    "blocklora.backbones.torchscript",
    "blocklora.data.images",
    "blocklora.data.imagenet",
    "blocklora.data.layouts",
    "blocklora.data.preprocess",
    "blocklora.data.sampling",
    "blocklora.data.splits",
    "blocklora.engine",
    "blocklora.experiments",
    "blocklora.methods",
    "blocklora.miniature",
    "blocklora.publish",
    "blocklora.study.pairs",
    "blocklora.theory",
)
# Modules within these packages that do not count, because they only write files or describe others.
PLUMBING = (
    "blocklora.adapters.store",
    "blocklora.engine.recipe",
    "blocklora.methods.base",
    "blocklora.publish.catalogue",
    "blocklora.theory.context",
    "blocklora.theory.measures",
)

VERSIONS_OF = ("blocklora", "numpy", "open_clip_torch", "pillow", "torch", "torchvision")
LOGGERS = ("logger", "log", "logging", "warnings")


@cache
def code_digest(*entries: str, data: Sequence[str] = (), without: str = "") -> str:
    """Return the SHA-256 of the code that can change an artefact.

    Args:
        entries: Full names of the modules or packages in which its computation starts. Of
            `module:function`, only the module counts.
        data: Glob patterns of data files below the package that count as code.
        without: The name of a function in these modules that does not count, and neither do
            the imports inside it.

    Raises:
        LookupError: An entry is not in the package.
    """
    pending = [(module, without) for entry in entries for module in _expand(entry)]
    parts: dict[str, str] = {}
    while pending:
        module, left_out = pending.pop()
        if module not in parts:
            parts[module] = _fingerprint(module, left_out)
            pending += [(name, "") for name in _imports(module, left_out)]
    lines = [f"{module} {parts[module]}\n" for module in sorted(parts)]
    for pattern in data:
        lines += [f"{path.name} {file_digest(path)}\n" for path in sorted(PACKAGE.glob(pattern))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change numbers."""
    installed = {name: metadata.version(name) for name in VERSIONS_OF}
    return {"python": platform.python_version(), **installed}


def decides(module: str) -> bool:
    """Return whether a module of this package counts in the digests of those that import it."""
    return _is_within(module, DECIDING) and not _is_within(module, PLUMBING)


def _is_within(module: str, places: Sequence[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@cache
def _modules() -> dict[str, Path]:
    """Return the path of each module of the package by its name, except for empty files."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if path.stat().st_size:
            found[".".join(("blocklora", *parts))] = path
    return found


def _expand(entry: str) -> list[str]:
    """Return the name of the module, or those of all modules of the package, that an entry names.

    Raises:
        LookupError: The entry is not in the package.
    """
    name = entry.partition(":")[0]
    found = [module for module in _modules() if _is_within(module, (name,))]
    if not found:
        raise LookupError(f"{name} is an entry of a digest, but it is not in the package")
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_modules()[module].read_text(encoding="utf-8"))


@cache
def _imports(module: str, without: str) -> frozenset[str]:
    """Return the modules that count and that `module` imports outside the function `without`."""
    names = set()
    for node in _nodes(_tree(module), without):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names & _modules().keys() if decides(name))


def _nodes(node: ast.AST, without: str) -> Iterator[ast.AST]:
    """Yield the nodes of a tree that can change a number."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        pending += (n for n in ast.iter_child_nodes(node) if not _is_left_out(n, without))


def _is_left_out(node: Any, without: str) -> bool:
    """Return whether a node is the function `without`, or is there only for type checkers."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(name=name):
            return name == without
    return False


@cache
def _fingerprint(module: str, without: str) -> str:
    return hashlib.sha256(repr(_structure(_tree(module), without)).encode()).hexdigest()


def _structure(node: Any, without: str) -> Any:
    """Return the parts of a syntax tree that count, as nested lists.

    Unlike `ast.dump`, this leaves out empty fields, which differ between versions of Python.
    """
    if isinstance(node, list):
        return [_structure(item, without) for item in node if _counts(item, without)]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Raise):
        # The class of an error may change what happens next, but its text does not.
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ["Raise", _structure(raised, without)]
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
        fields = {"func": node.func}
    for name in ("annotation", "returns"):
        fields.pop(name, None)
    filled = {name: value for name, value in fields.items() if value not in (None, [])}
    parts = ([name, _structure(value, without)] for name, value in filled.items())
    return [type(node).__name__, *parts]


def _counts(statement: Any, without: str) -> bool:
    """Return whether a statement, or another item of a list in a tree, can change a number.

    Imports within the package do not count, because the imported modules count themselves.
    """
    match statement:
        case ast.ImportFrom(module=str(module)):
            return module.partition(".")[0] != "blocklora"
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name not in LOGGERS
        case ast.Expr(value=ast.Constant()):  # a docstring, or the description of a variable
            return False
    return not _is_left_out(statement, without)
