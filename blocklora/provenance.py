"""Where a result came from: the code that decides it, and the versions it ran with.

A workflow engine sees changed files, not changed functions. The digest of a step is that of the
package modules that decide the step's numbers: those it starts from and everything they import,
read as syntax trees, so that comments, docstrings and layout count for nothing.
"""

import ast
import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocklora.files import file_digest

if TYPE_CHECKING:
    from blocklora.study.model import Run, Study

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """What decides a step's numbers: modules or packages it starts from, and data files.

    What the modules import follows by itself. Data files are glob patterns below the package.
    """

    modules: tuple[str, ...]
    data: tuple[str, ...] = ()


# Decoding is part of a run: what it changes is seen in no digest of a file.
STEPS = {
    "draw_dataset": Step(("blocklora.miniature.datasets",)),
    "make_manifest": Step(("blocklora.data.layouts", "blocklora.data.manifest")),
    "shots": Step(("blocklora.data.sampling", "blocklora.data.manifest")),
    "decode_images": Step(("blocklora.data.decode",)),
    "fetch_backbone": Step(("blocklora.backbones.checkpoints",)),
    "pretrain_backbone": Step(("blocklora.miniature.pretrain",)),
    "zero_shot": Step(("blocklora.runs.fit", "blocklora.data.decode")),
    "train": Step(("blocklora.runs.fit", "blocklora.data.decode")),
    "bounds": Step(
        ("blocklora.theory.bounds", "blocklora.theory.sources"), ("theory/prompt_lengths.csv",)
    ),
    "gaps": Step(("blocklora.theory.gaps",)),
    "spectra": Step(
        ("blocklora.theory.spectra", "blocklora.theory.comparison", "blocklora.study.pairs")
    ),
    "compression": Step(("blocklora.theory.guarantees",)),
    "efficiency": Step(
        ("blocklora.theory.efficiency", "blocklora.theory.sources"), ("theory/prompt_lengths.csv",)
    ),
    "publish": Step(
        ("blocklora.publish", "blocklora.study.pairs"),
        ("publish/reference/*", "publish/*.mplstyle"),
    ),
}

# They carry values, write files and keep work that is interrupted, but decide no number; imports of
# them are not followed.
PASSIVE = (
    "blocklora.cli",
    "blocklora.errors",
    "blocklora.files",
    "blocklora.study",
    "blocklora.runs.checkpoint",
    "blocklora.runs.device",
    "blocklora.runs.energy",
    "blocklora.runs.interruption",
    "blocklora.runs.lock",
)

VERSIONS_OF = ("blocklora", "numpy", "open_clip_torch", "pillow", "torch", "torchvision")


@cache
def code_digest(step: str) -> str:
    """Return the SHA-256 of the code that decides the numbers of `step`, a key of `STEPS`."""
    pending = [module for entry in STEPS[step].modules for module in _expand(entry)]
    modules: set[str] = set()
    while pending:
        module = pending.pop()
        if module not in modules:
            modules.add(module)
            pending += _imports(module)
    lines = [f"{module} {_fingerprint(module)}\n" for module in sorted(modules)]
    for pattern in STEPS[step].data:
        lines += [f"{path.name} {file_digest(path)}\n" for path in sorted(PACKAGE.glob(pattern))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    installed = {name: metadata.version(name) for name in VERSIONS_OF}
    return {"python": platform.python_version(), **installed}


def run_provenance(study: "Study", run: "Run", precision: str, engine: str) -> dict[str, Any]:
    """Return the part of a run's provenance that is known before it starts."""
    step = "zero_shot" if study.methods[run.method].kind == "zero_shot" else "train"
    return {
        "study_digest": study.digest,
        "run_digest": study.run_digest(run, precision, engine),
        "code_digest": code_digest(step),
        "precision": precision,
        "engine": engine,
        "versions": package_versions(),
    }


@cache
def _modules() -> dict[str, Path]:
    """Return the package's modules by name; packages themselves are empty and left out."""
    return {
        ".".join(("blocklora", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("__init__.py", "commands.py")
    }


def _expand(entry: str) -> list[str]:
    """Return the module `entry`, or the modules of the package `entry`."""
    found = [name for name in _modules() if name == entry or name.startswith(f"{entry}.")]
    if not found:
        raise LookupError(f"{entry}, an entry module of a step, is not in the package")
    return found


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_modules()[module].read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the modules of the package that `module` imports anywhere, passive ones excepted."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in names & _modules().keys() if not _is_passive(name))


def _is_passive(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in PASSIVE)


@cache
def _fingerprint(module: str) -> str:
    return hashlib.sha256(repr(_structure(_tree(module))).encode()).hexdigest()


def _structure(node: Any) -> Any:
    """Return a syntax tree as nested lists without docstrings.

    Unlike `ast.dump` it leaves out empty fields, which differ between versions of Python.
    """
    if isinstance(node, list):
        return [_structure(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
    return [
        type(node).__name__,
        *([name, _structure(value)] for name, value in fields.items() if value not in (None, [])),
    ]
