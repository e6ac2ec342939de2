"""Each mistake in a study or configuration ends in one line that says what is allowed."""

import copy
from pathlib import Path

import jsonschema
import pytest
import yaml

from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.methods import METHODS
from blocklora.study.config import read_configuration
from blocklora.study.schemas import study_schema
from blocklora.study.study import load_study
from blocklora.study.study_files import find_study
from blocklora.yamlfiles import StrictLoader

ROOT = Path(__file__).parents[2]


MINIATURE = {
    "seed": 1,
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "context_length": 16,
    "vision": {"width": 96, "layers": 3, "heads": 3},
    "text": {"width": 64, "layers": 2, "heads": 2},
    "steps": 600,
    "batch_size": 128,
    "learning_rate": 1e-3,
}


def change(document, key, value):
    *parents, last = key.split(".")
    for parent in parents:
        document = document[parent]
    if value is None:
        del document[last]
    else:
        document[last] = value


# Faults of a single value, which the JSON schema of editors finds too.
OF_A_VALUE = [
    ("datsets", ["dtd"], "datsets: unknown key; did you mean datasets? (allowed: extends,"),
    ("recipe.crop", [0, 1], "recipe.crop: unknown key"),
    ("methods.block_lora.rnk", 2, "methods.block_lora.rnk: unknown key; did you mean rank?"),
    ("methods.zero_shot.rank", 2, "methods.zero_shot.rank: unknown key"),
    ("seeds", None, "seeds: missing; it must be a list of different whole numbers"),
    ("methods.block_lora.rank", None, "methods.block_lora.rank: missing; it must be a whole"),
    ("shots", 4, "shots: 4 is not allowed; it must be a list of different whole numbers"),
    ("shots", [0, 4], "shots[0]: 0 is not allowed; it must be a whole number of at least 1"),
    ("shots", [1, 4.0], "shots[1]: 4.0 is not allowed; it must be a whole number"),
    ("shots", [True, 4], "shots[0]: true is not allowed; it must be a whole number"),
    ("shots", [4, 1], "shots: [4, 1] is not allowed; it must be a list of different whole"
     " numbers of at least 1, ascending"),
    ("seeds", [1, 1], "seeds: [1, 1] is not allowed; it must be a list of different whole"),
    ("seeds", ["1"], 'seeds[0]: "1" is not allowed; it must be a whole number from 0 to'),
    ("seeds", [99999999999999999999], "seeds[0]: 99999999999999999999 is not allowed; it must"
     " be a whole number from 0 to 4294967295"),
    ("seeds", [], "seeds: [] is not allowed"),
    ("datasets", ["dtd", "dtd"], 'datasets: ["dtd", "dtd"] is not allowed'),
    ("methods.block_lora.kind", "adaptor",
     'methods.block_lora.kind: "adaptor" is not allowed; it must be one of '
     f"{', '.join(sorted(METHODS))}; did you mean adapter?"),
    ("methods.block_lora.dropout", 1, "methods.block_lora.dropout: 1 is not allowed; it must be"
     " a number of at least 0 and below 1"),
    ("methods.block_lora.matrices", ["q", "w"], 'methods.block_lora.matrices[1]: "w" is not'),
    ("methods.block_lora.layers", "some", 'methods.block_lora.layers: "some" is not allowed; it'
     " must be all, or the first and the last layer, such as [0, 5]"),
    ("methods.block_lora", {"kind": "adapter"}, "methods.block_lora.alpha: missing; it must"),
    ("methods.block_lora", {"rank": 2}, "methods.block_lora.kind: missing; it must be one of"),
    ("methods.block_lora", 2, "methods.block_lora: 2 is not allowed; it must be a mapping"),
    ("experiments", ["few_shots"], 'experiments[0]: "few_shots" is not allowed; it must be one '
     "of few_shot, ablation; did you mean few_shot?"),
    ("experiments", [], "experiments: [] is not allowed; it must be a list of different"),
    ("methods.a/b", {"kind": "zero_shot"}, 'methods: "a/b" is not allowed; it must be a name'),
    ("recipe.prompt", "a photo", 'recipe.prompt: "a photo" is not allowed; it must be a text '
     "with one {} for the name of the class"),
    ("recipe.learning_rate", "fast", 'recipe.learning_rate: "fast" is not allowed; it must be a'
     " number above 0"),
    ("recipe", None, "recipe: missing; it must be a mapping of the hyperparameters of"),
    ("own_datasets", {"mine": {"csv": "x.csv"}}, "own_datasets.mine.images: missing; it must"),
]  # fmt: skip

# Values that do not go together, or that name nothing there is.
TOGETHER = [
    ("datasets", ["dtd", "eurosatt"], "datasets[1]: eurosatt is neither in the registry nor in"
     " own_datasets; did you mean eurosat? (allowed: caltech101, dtd,"),
    ("methods.zero_shot", None, "methods: 0 methods of kind zero_shot are not allowed; there"),
    ("methods.block_lora.rank", 3,
     "methods.block_lora.rank: 3 is not allowed; it must be a multiple of blocks, 2, for the"),
    ("methods.block_lora.layers", [5, 0], "methods.block_lora.layers: [5, 0] is not allowed; it"
     " must ascend"),
    ("methods.block_lora.layers", [0, 40], "methods.block_lora: layers [0, 40] goes beyond the"
     " vision tower, whose layers are 0 to 11"),
    ("methods.block_lora.rank", 4000, "methods.block_lora: rank 4000 is larger than 768, the "
     "width of the vision tower (backbone ViT-B-16-quickgelu)"),
    ("backbones", {}, "backbones: {} is not allowed; there must be at least one"),
    ("recipe.final_learning_rate", 1, "recipe.final_learning_rate: 1 is not allowed; it must be"
     " at most learning_rate, 0.0002"),
    ("recipe.crop_scale", [1, 0.5], "recipe.crop_scale: [1, 0.5] is not allowed; it must asc"),
    ("backbones", {"ViT-B-16": {"source": "openai"}}, "backbones.ViT-B-16: OpenAI has no such "
     "model; did you mean ViT-B-16-quickgelu?"),
    ("backbones", {"small": {"source": "miniature"}}, "miniature: missing; it must be the set"),
    ("miniature", MINIATURE, "miniature: no dataset or backbone of this study is drawn"),
    ("name", "large", 'name: "large" is not allowed; it must be the name of the file, small'),
    ("own_datasets", {"mine": {"images": "nowhere"}}, "own_datasets.mine.images: nowhere is n"),
    ("own_datasets", {"dtd": {"images": "."}}, "own_datasets.dtd: the registry has a dataset"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "line"), OF_A_VALUE + TOGETHER)
def test_a_fault_is_one_line_with_file_key_value_and_what_is_allowed(
    document, write, key, value, line
):
    change(document, key, value)
    path = write()
    with pytest.raises(UserError) as caught:
        load_study(path, images_needed=True)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}: {line}")
    missing = [line for line in lines if "missing" in line]
    assert len(lines) == max(1, len(missing))


@pytest.mark.parametrize(("key", "value"), [row[:2] for row in OF_A_VALUE + TOGETHER])
def test_the_schema_of_editors_refuses_what_a_single_value_may_not_be(document, key, value):
    """To a JSON schema 4.0 is an integer, and order means nothing."""
    schema = jsonschema.Draft202012Validator(study_schema())
    assert schema.is_valid(document)
    change(document, key, value)
    known = str(value) in ("[1, 4.0]", "[4, 1]")
    assert schema.is_valid(document) == (known or (key, value) in [row[:2] for row in TOGETHER])


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("step", 5, "miniature.step: unknown key; did you mean steps?"),
        (
            "vision.layers",
            0,
            "miniature.vision.layers: 0 is not allowed; it must be a whole number",
        ),
        ("text", None, "miniature.text: missing; it must be a mapping of the width, layers and"),
        ("learning_rate", -1, "miniature.learning_rate: -1 is not allowed; it must be a number ab"),
        ("seed", -1, "miniature.seed: -1 is not allowed; it must be a whole number from 0 to"),
        ("patch_size", 7, "miniature.patch_size: 7 is not allowed; it must divide image_size, 32"),
        ("text.heads", 3, "miniature.text.heads: 3 is not allowed; it must divide text.width, 64"),
    ],
)
def test_a_fault_of_the_miniature_is_one_line(document, write, key, value, line):
    document["methods"]["block_lora"]["layers"] = "all"
    document["backbones"] = {"small": {"source": "miniature"}}
    document["miniature"] = copy.deepcopy(MINIATURE)
    assert load_study(write()).image_size("small") == 32
    change(document["miniature"], key, value)
    with pytest.raises(UserError) as caught:
        load_study(write())
    assert f"small.yaml: {line}" in str(caught.value)


def test_all_faults_are_listed_at_once(document, write):
    change(document, "shots", [0, 4])
    change(document, "recipe.betas", [0.9])
    change(document, "sed", 1)
    path = write()
    with pytest.raises(UserError) as caught:
        load_study(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["recipe.betas", "sed", "shots[0]"]


def test_a_duplicate_key_is_a_fault(write):
    path = write("name: small\nshots: [1]\nshots: [2]\n")
    with pytest.raises(UserError, match=r"small.yaml, line 3: .* 'shots' occurs twice"):
        load_study(path)


def test_broken_yaml_is_reported_with_its_line(write):
    with pytest.raises(UserError, match=r"small.yaml, line 3: not valid YAML"):
        load_study(write("name: small\nshots: [1\n"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: small", "name: small\n1: foo", ": 1: unknown key (allowed: extends, "),
        ("name: small", "name: small\nnull: foo", ": null: unknown key (allowed: extends, "),
        ("  batch_size:", "  5: x\n  batch_size:", ": recipe.5: unknown key (allowed: prompt, "),
        ("kind: zero_shot", "kind: [zero_shot]", '.kind: ["zero_shot"] is not allowed; it must'),
        ("kind: zero_shot", "kind: {a: 1}", '.kind: {"a": 1} is not allowed; it must be one of'),
        ("kind: zero_shot", "kind: 3", ".kind: 3 is not allowed; it must be one of"),
        ("kind: zero_shot", "kind: null", ".kind: null is not allowed; it must be one of"),
        ("title: Small", "title: !!bool maybe", ": not valid YAML: 'maybe'"),
        ("title: Small", "title: &a [*a]", ": not allowed: an alias refers to a part that it is"),
    ],
)
def test_a_value_of_an_odd_type_is_one_line(write, document, old, new, line):
    document["title"] = "Small"
    text = yaml.safe_dump(document, sort_keys=False)
    assert old in text
    path = write(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_number_with_leading_zeros_is_decimal(write, document):
    text = yaml.safe_dump(document | {"seeds": "HERE"}).replace("HERE", "[1, 010, 011]")
    assert load_study(write(text)).seeds == (1, 10, 11)


def test_a_merged_mapping_that_overrides_a_key_has_no_key_twice():
    text = "a: &a {x: 1}\ndeep: {deeper: {b: &b {<<: *a, x: 2}}}\nc: {<<: *b, y: 3}\n"
    assert yaml.load(text, StrictLoader)["c"] == {"x": 2, "y": 3}


@pytest.mark.parametrize("content", ["", "- 1\n", "small\n"])
def test_a_file_that_is_no_mapping_is_a_fault(write, content):
    with pytest.raises(
        UserError, match=r"the file: .* it must be a mapping of the keys of a study"
    ):
        load_study(write(content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read: No such file"):
        load_study(tmp_path / "absent.yaml")


def test_exponents_without_a_point_are_numbers(write, document):
    text = yaml.safe_dump(document).replace("0.0002", "2e-4")
    assert "2e-4" in text
    assert load_study(write(text)).recipe.learning_rate == 2e-4


def test_check_study_prints_faults_without_a_traceback(document, write, capsys):
    change(document, "shots", [0])
    path = write()
    assert main(["check-study", "--study", str(path)]) == 1
    assert capsys.readouterr().err.startswith(
        f"blocklora check-study: error: {path}: shots[0]: 0 is not allowed"
    )


def test_check_study_prints_a_study_that_is_the_same(write, document, capsys):
    path = write()
    assert main(["check-study", "--study", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {path}: 10 runs, of which 8 are fitted\n")
    assert yaml.load(printed, StrictLoader) == document


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("presision", "fp32", "presision: unknown key; did you mean precision?"),
        ("device", "gpu", 'device: "gpu" is not allowed; it must be one of auto, cpu, cuda'),
        ("job_hours", 0, "job_hours: 0 is not allowed; it must be a number above 0"),
        ("cache", "", 'cache: "" is not allowed; it must be the path of a folder'),
        ("offline", "yes", 'offline: "yes" is not allowed; it must be true or false'),
        ("study", ["mini"], 'study: ["mini"] is not allowed; it must be the name of a file in'),
    ],
)
def test_a_fault_of_the_configuration_is_one_line(key, value, line):
    file = ROOT / "config.yaml"
    assert read_configuration([file], {}) == yaml.safe_load(file.read_text())
    with pytest.raises(UserError) as caught:
        read_configuration([file], {key: value})
    assert str(caught.value).startswith(f"{file} and --config: {line}")


def test_a_study_is_found_by_name_and_by_path(tmp_path):
    (tmp_path / "one.yaml").touch()
    assert find_study("one", tmp_path) == tmp_path / "one.yaml"
    assert find_study(str(tmp_path / "one.yaml"), tmp_path) == tmp_path / "one.yaml"


def test_a_misspelt_study_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "paper.yaml").touch()
    with pytest.raises(UserError, match=r"study: papr is neither .* did you mean paper\?"):
        find_study("papr", tmp_path)
