"""A change of code changes the digests of exactly what depends on it, and words change none."""

import ast
import copy
from pathlib import Path

import pytest

from blocklora import provenance
from blocklora.adapters.config import Cut
from blocklora.study import digests
from blocklora.study.run import Run
from blocklora.study.study import load_study

ROOT = Path(__file__).parents[2]
STUDY = load_study(ROOT / "studies/mini.yaml")
FITTED = Run("mini-clip", "mini_digits", "clip_lora", 4, 1)
UNTRAINED = Run("mini-clip", "mini_digits", "zero_shot", 0, 0)

SHOTS = {"shots list"}
FITS = {"fit", "fit by the reference"}
ADAPTED = {"test", "test on the shots"}
TESTS = {*ADAPTED, "zero-shot test"}
PIXELS = {"shots pixels", "test pixels"}
WEIGHTS = {"weights"}
EVERYTHING = {"listing", *SHOTS, *PIXELS, *WEIGHTS, *FITS, *TESTS}


def artefacts():
    """Return the digest of every kind of artefact of the miniature study, by name."""
    dataset = FITTED.dataset
    tested, trained = FITTED.own_tests
    return {
        "listing": digests.listing_digest(STUDY, dataset),
        "shots list": digests.shots_digest(STUDY, dataset),
        "shots pixels": digests.shots_pixels_digest(STUDY, dataset),
        "test pixels": digests.test_pixels_digest(STUDY, dataset),
        "weights": digests.backbone_digest(STUDY, FITTED.backbone),
        "fit": digests.fit_digest(STUDY, FITTED, "fp32", "fast"),
        "fit by the reference": digests.fit_digest(STUDY, FITTED, "fp32", "reference"),
        "test": digests.test_digest(STUDY, tested, "fp32", "fast"),
        "test on the shots": digests.test_digest(STUDY, trained, "fp32", "fast"),
        "zero-shot test": digests.test_digest(STUDY, UNTRAINED.own_tests[0], "fp32", "fast"),
    }


@pytest.fixture(scope="module")
def before():
    return artefacts()


@pytest.fixture
def changed(monkeypatch, before):
    """Return which artefacts have another digest once modules have other syntax trees."""
    tree, fingerprint = provenance._tree, provenance._fingerprint

    def after(trees):
        monkeypatch.setattr(provenance, "_tree", lambda name: trees.get(name) or tree(name))
        monkeypatch.setattr(
            provenance,
            "_fingerprint",
            lambda name, without: (
                fingerprint.__wrapped__(name, without)
                if name in trees
                else fingerprint(name, without)
            ),
        )
        forget()
        found = artefacts()
        return {name for name, digest in found.items() if digest != before[name]}

    yield after
    forget()


def forget():
    provenance.code_digest.cache_clear()
    provenance._imports.cache_clear()


def edit(module, name=None):
    """Return the tree of a module with one more statement, at its end or that of a function."""
    tree = copy.deepcopy(provenance._tree(module))
    bodies = [tree.body] if name is None else [f.body for f in functions(tree) if f.name == name]
    assert bodies, f"{module} has no function {name}"
    for body in bodies:
        body += ast.parse("edited = 1").body
    return {module: tree}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(
    ("module", "function", "expected"),
    [
        ("data.preprocess", "evaluation_transform", {"test pixels", *TESTS}),
        ("data.images", "read_image", {*PIXELS, *FITS, *TESTS}),
        ("data.sampling", "draw_shots", {*SHOTS, *FITS, *ADAPTED}),
        ("data.splits", "scan_image_folder", {"listing", *SHOTS, *FITS, *TESTS}),
        ("data.layouts", "list_images", {"listing", *SHOTS, *FITS, *TESTS}),
        ("adapters.merge", "merge", ADAPTED),
        ("adapters.adapter", "initialise", {*FITS, *ADAPTED}),
        ("backbones.prompts", "class_prompts", {*FITS, *TESTS}),
        ("backbones.prompts", "tokenize", {*WEIGHTS, *FITS, *TESTS}),
        ("methods.low_rank", "fit", {*FITS, *ADAPTED}),
        ("methods.low_rank", "classifier", ADAPTED),
        ("methods.zero_shot", "classifier", {"zero-shot test"}),
        ("miniature.pretrain", "contrastive_loss", {*WEIGHTS, *FITS, *TESTS}),
        ("miniature.datasets", "draw_dataset", EVERYTHING - WEIGHTS),
    ],
)
def test_an_edited_function_changes_what_depends_on_it(changed, module, function, expected):
    if (module, function) == ("backbones.prompts", "class_prompts"):
        expected = expected | WEIGHTS  # pretraining reads captions by the same module
    assert changed(edit(f"blocklora.{module}", function)) == expected


# Whether a module of the engine has a part in fits, in tests, or in both.
ENGINE = {
    "augment": {*FITS, *ADAPTED},
    "batches": {*FITS, *ADAPTED},
    "blocks": {*FITS, *TESTS},
    "classifier": TESTS,
    "engines": {*FITS, *ADAPTED},
    "fast": {*FITS, *ADAPTED},
    "graphs": {*FITS, *ADAPTED},
    "loop": {*FITS, *ADAPTED},
    "masks": {*FITS, *TESTS},
    "memory": {*FITS, *TESTS},
    "needs": {*FITS, *ADAPTED},
    "packing": {*FITS, *TESTS},
    "plan": {*FITS, *ADAPTED},
    "precisions": {*FITS, *TESTS},
    "products": {*FITS, *TESTS},
    "randomness": {*FITS, *ADAPTED},
    "reading": TESTS,
    "recipe": set(),
    "reference": {"fit by the reference"},
    "towers": {*FITS, *TESTS},
}


def test_every_module_of_the_engine_is_expected_to_matter():
    found = {path.stem for path in (ROOT / "blocklora/engine").glob("*.py")}
    assert found - {"__init__"} == ENGINE.keys()


@pytest.mark.parametrize("module", ENGINE)
def test_every_edited_function_of_the_engine_changes_what_depends_on_it(changed, module):
    name = f"blocklora.engine.{module}"
    for function in {f.name for f in functions(provenance._tree(name))}:
        assert changed(edit(name, function)) == ENGINE[module], function


def test_a_table_of_constants_counts_like_a_function(changed):
    assert changed(edit("blocklora.engine.precisions")) == {*FITS, *TESTS}


def test_plumbing_changes_nothing(changed):
    """Readers and writers of files, records, logs, locks, commands, tables and figures."""
    plumbing = [name for name in provenance._modules() if not provenance.decides(name)]
    assert {"blocklora.files", "blocklora.runs.fit", "blocklora.runs.columns"} <= {*plumbing}
    folders = ("blocklora.publish.", "blocklora.theory.")
    published = [name for name in provenance._modules() if name.startswith(folders)]
    trees = {}
    for name in plumbing + published:
        trees |= edit(name)
    assert changed(trees) == set()


class Reworded(ast.NodeTransformer):
    """Other docstrings, messages, logging and annotations; the code is the same."""

    def visit_Constant(self, node):
        return ast.Constant(f"{node.value}, reworded") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node):
        return ast.Constant("reworded")


def reword(tree):
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("Another docstring.")
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            Reworded().visit(node.exc)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
            Reworded().visit(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "logger":
                Reworded().visit(node.value)
                node.value.args.append(ast.Constant("one more value"))
        elif isinstance(node, ast.arg):
            node.annotation = ast.parse("int", mode="eval").body
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.parse("Annotated[int, 'reworded']", mode="eval").body
    return tree


def test_words_change_nothing(changed):
    trees = {name: reword(provenance._tree(name)) for name in provenance._modules()}
    texts = [ast.unparse(trees[name]) != ast.unparse(provenance._tree(name)) for name in trees]
    assert sum(texts) > 80
    assert changed(trees) == set()


def test_a_moved_module_of_the_plumbing_changes_nothing(changed):
    trees = {}
    for name in provenance._modules():
        trees[name] = copy.deepcopy(provenance._tree(name))
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.ImportFrom) and not provenance.decides(node.module or ""):
                node.module = (node.module or "").replace("blocklora.", "blocklora.moved.")
    assert changed(trees) == set()


def test_another_message_or_docstring_of_a_helper_that_makes_errors_changes_nothing(changed):
    """`_never_fits` of the planner returns an error instead of raising it."""
    tree = copy.deepcopy(provenance._tree("blocklora.engine.plan"))
    (function,) = [f for f in functions(tree) if f.name == "_never_fits"]
    Reworded().visit(function)
    assert changed({"blocklora.engine.plan": tree}) == set()


def test_the_condition_of_an_error_counts(changed):
    tree = copy.deepcopy(provenance._tree("blocklora.data.sampling"))
    (function,) = [f for f in functions(tree) if f.name == "draw_shots"]
    (check,) = [node for node in function.body if isinstance(node, ast.If)][:1]
    check.test = ast.parse("shots < 2", mode="eval").body
    assert changed({"blocklora.data.sampling": tree}) == {*SHOTS, *FITS, *ADAPTED}


def test_values_of_a_method_that_is_not_trained_are_part_of_its_digest():
    def digest(config):
        method = STUDY.methods["zero_shot"].model_copy()
        method._config = config
        study = STUDY.model_copy(update={"methods": {"zero_shot": method}})
        return digests.fit_digest(study, UNTRAINED, "fp32", "fast")

    assert len({digest(None), digest(Cut()), digest(Cut(rank=True))}) == 3
