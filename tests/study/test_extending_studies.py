"""A study file that extends another one is what it would be if everything were written out."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from blocklora.errors import UserError
from blocklora.study.schemas import study_schema
from blocklora.study.study import load_study

STUDIES = Path(__file__).parents[2] / "studies"
WIDE = {
    "kind": "adapter",
    "rank": 8,
    "blocks": 8,
    "partition": "rank",
    "alpha": 1,
    "dropout": 0,
    "matrices": ["q"],
    "layers": "all",
    "towers": ["vision"],
}


@pytest.fixture
def extend(write, tmp_path):
    """Write a study that extends small.yaml, and return its path."""

    def extend_study(text="", **keys):
        write()
        path = tmp_path / "mine.yaml"
        whole = {"extends": "small", "name": "mine", "title": "Mine", **keys}
        path.write_text(text or yaml.safe_dump(whole))
        return path

    return extend_study


def test_methods_are_merged_by_name_and_other_keys_are_replaced(extend, document):
    methods = {"wide": WIDE, "block_lora": None}
    study = load_study(extend(methods=methods, datasets=["ucf101"]))
    assert study.document == {
        **document,
        "name": "mine",
        "title": "Mine",
        "datasets": ["ucf101"],
        "methods": {"zero_shot": {"kind": "zero_shot"}, "wide": WIDE},
    }
    assert list(study.methods) == ["zero_shot", "wide"]


def test_the_digest_is_that_of_the_study_written_out(extend, tmp_path):
    path = extend(methods={"wide": WIDE}, seeds=[7])
    study = load_study(path)
    path.write_text(yaml.safe_dump(study.document, sort_keys=False))
    assert load_study(path).digest == study.digest


def test_a_key_that_is_null_is_left_out(extend, document):
    document["experiments"] = ["few_shot"]
    assert load_study(extend()).experiments == ("few_shot",)
    assert load_study(extend(experiments=None)).experiments is None


def test_a_study_extends_another_over_several_steps_and_by_path(extend, tmp_path):
    extend(seeds=[5])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "last.yaml"
    path.write_text(f"extends: {tmp_path}/mine.yaml\nname: last\n")
    study = load_study(path)
    assert (study.name, study.title, study.seeds) == ("last", "Mine", (5,))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"extends": "smal"}, "{path}: extends: .*smal is neither a file nor .* mean small?"),
        ({"extends": 3}, "{path}: extends: 3 is not allowed; it must be the name or"),
        (
            {"extends": "mine"},
            "{path}: extends: .*mine.yaml extends .*mine.yaml; .* not extend each",
        ),
        ({"name": "small"}, '{path}, which extends .*small.yaml: name: "small" is not .* mine'),
        ({"seeds": [-1]}, r"{path}, which extends .*small.yaml: seeds\[0\]: -1 is not allowed"),
        ({"recipe": {"batch_size": 4}}, "{path}, which .*: recipe.betas: missing; it must be two"),
        ({"methods": {"zero_shot": None}}, "{path}, which .*: methods: 0 methods of kind zero"),
        ({"methods": []}, r"{path}, which .*: methods: \[\] is not allowed; it must be a mapping"),
    ],
)
def test_a_fault_names_both_files(extend, keys, line):
    path = extend(**keys)
    with pytest.raises(UserError, match=line.format(path=path)):
        load_study(path)


def test_a_misspelt_extends_is_told(extend, document):
    path = extend("extend: small\nname: mine\n")
    with pytest.raises(UserError, match=r"extend: unknown key; did you mean extends\?"):
        load_study(path)


def test_the_schema_of_editors_allows_what_may_be_left_to_the_other_study():
    schema = jsonschema.Draft202012Validator(study_schema())
    assert schema.is_valid({"extends": "paper", "methods": {"wide": WIDE, "block_lora": None}})
    assert not schema.is_valid({"methods": {"wide": WIDE}})
    assert not schema.is_valid({"extends": "paper", "methods": {"wide": {**WIDE, "rank": 0}}})
    assert not schema.is_valid({"extends": "paper", "seds": [1]})


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_project_fit_the_schema_of_editors(path):
    assert (
        list(
            jsonschema.Draft202012Validator(study_schema()).iter_errors(
                yaml.safe_load(path.read_text(encoding="utf-8").replace("e-", ".0e-"))
            )
        )
        == []
    )
