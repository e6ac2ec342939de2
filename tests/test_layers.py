"""Each layer of the package imports only what lies below it."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from blocklora import provenance
from blocklora.cli import commands

# From the bottom to the top; modules of one line may import each other. `commands` is what people
# and the workflow call, so it may use everything.
LAYERS = (
    ("__init__", "errors"),
    ("fields", "files", "yamlfiles", "csvfiles", "tensorfiles", "validation"),
    ("locks",),
    ("cache", "provenance"),
    ("data",),
    ("backbones", "miniature"),
    ("adapters",),
    ("engine",),
    ("methods",),
    ("study",),
    ("runs",),
    ("theory",),
    ("performance",),
    ("publish",),
    ("experiments",),
    ("commands", "cli", "__main__"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def part(module):
    """Return the folder or file of the package that a module is in."""
    return [*module.split("."), "__init__"][1]


def imports(module):
    """Yield the modules of the package that a module imports when it runs."""
    known = provenance._modules().keys()
    for node in provenance._nodes(provenance._tree(module), without=""):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blocklora"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("blocklora"))


# Study files name experiments, which build on studies.
ALLOWED = {
    (f"blocklora.study.{module}", "blocklora.experiments") for module in ("study", "schemas")
}


def test_every_part_of_the_package_has_a_layer():
    package = Path(provenance.__file__).parent
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__pycache__"} == RANKS.keys()


@pytest.mark.parametrize("module", sorted(provenance._modules()))
def test_module_imports_only_what_lies_below_it(module):
    upward = {(module, name) for name in imports(module) if RANKS[part(name)] > RANKS[part(module)]}
    assert upward <= ALLOWED


def test_any_module_can_be_the_first_that_is_imported():
    """What modules and the packages around them import while they are read is no circle."""
    known = provenance._modules()
    read_first = {}
    for module in known:
        found = _imported_when_read(provenance._tree(module), known)
        # A package is read before its modules, its own one before anything that a module imports.
        packages = {name.rpartition(".")[0] for name in found} & known.keys()
        read_first[module] = (found | packages) - {module, module.rpartition(".")[0]}
    TopologicalSorter(read_first).prepare()


def _imported_when_read(node, known):
    """Return the modules of the package that are imported when a module is read."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.module:
            names = {f"{child.module}.{alias.name}" for alias in child.names}
            found |= (names | {child.module}) & known.keys()
        elif isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= _imported_when_read(child, known)
    return found


def _loaded(*calls):
    """Return the modules that are loaded after calls of the command line."""
    code = (
        "import sys; from blocklora.cli import main\n"
        "for words in sys.argv[1:]: main(words.split())\n"
        "print('modules', *sys.modules)"
    )
    command = [sys.executable, "-c", code, *calls]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("modules ")[2].split())


HEAVY = {"torch", "numpy", "pandas", "matplotlib", "snakemake", "tarfile", "rich"}


def test_the_command_line_starts_without_what_its_commands_need():
    loaded = _loaded("--help")
    assert "blocklora.commands.data" in loaded
    assert loaded & (HEAVY | {"pydantic", "importlib.metadata"}) == set()
    assert [name for name in loaded if name.startswith("blocklora.data")] == []


def test_the_help_of_a_command_imports_nothing_heavy():
    """typer reads the values of options by pydantic, which study files need as well."""
    loaded = _loaded(*(f"{name} --help" for name in commands.commands))
    assert "blocklora.experiments" in loaded
    assert loaded & HEAVY == set()


def test_deciding_modules_import_no_plumbing():
    """Else a change of it might decide a number without being part of a digest."""
    helpers = ("blocklora.errors", "blocklora.fields", "blocklora.tensorfiles")
    allowed = (*helpers, *provenance.PLUMBING)
    entries = ("blocklora.engine", "blocklora.methods", "blocklora.adapters")
    for module in provenance._modules():
        if module.startswith(entries) and provenance.decides(module):
            odd = {n for n in imports(module) if not provenance.decides(n)} - {*allowed}
            assert odd == set(), module
