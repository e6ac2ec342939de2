import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from blocklora.adapters.config import AdapterConfig
from blocklora.engine.precisions import PRECISIONS, resolve_precision
from blocklora.errors import UserError
from blocklora.study.config import Config
from blocklora.study.digests import test_digest as digest_of_test
from blocklora.study.run import Run
from blocklora.study.schemas import schema_text
from blocklora.study.study import Study, load_study
from blocklora.validation import json_schema

ROOT = Path(__file__).parents[2]


def digests(study, precision="fp32", engine="fast"):
    return {run: digest_of_test(study, run.own_tests[0], precision, engine) for run in study.runs()}


@pytest.fixture
def before(write):
    return digests(load_study(write()))


def test_runs_are_all_combinations_and_zero_shot_once_per_dataset(write):
    runs = list(load_study(write()).runs())
    assert len(runs) == 2 * (1 + 2 * 2)
    assert len(set(runs)) == len(runs)
    assert runs[:2] == [
        Run("ViT-B-16-quickgelu", "dtd", "zero_shot", 0, 0),
        Run("ViT-B-16-quickgelu", "dtd", "block_lora", 1, 1),
    ]
    assert runs[1].folder == "ViT-B-16-quickgelu/dtd/block_lora/1shot/seed1"


def test_fields_are_those_of_the_file(write):
    study = load_study(write())
    assert study.methods["block_lora"].adapter == AdapterConfig(
        4, 2, "rank", 1, 0.25, ("q", "v"), (0, 5), ("vision",)
    )
    assert study.recipe.learning_rate == 2e-4
    assert study.recipe.betas == (0.9, 0.999)
    assert study.image_size("ViT-B-16-quickgelu") == 224
    assert study.zero_shot == "zero_shot"


def test_the_study_of_the_paper_is_the_protocol():
    """Values: fewshot protocol of MaxZanella/CLIP-LoRA@358f0d7, and 11 x (1 + 2 x 5 x 3) runs."""
    study = load_study(ROOT / "studies" / "paper.yaml")
    assert len(list(study.runs())) == 341
    lora, block = study.methods["clip_lora"].adapter, study.methods["block_lora"].adapter
    assert (lora.rank, lora.blocks, lora.scale) == (2, 1, pytest.approx(0.70710678))
    assert (block.rank, block.blocks) == (2, 2)
    assert (study.recipe.iterations_per_shot, study.recipe.weight_decay) == (500, 0.01)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("title", "Another title"),
        ("datasets", ["ucf101", "dtd", "eurosat"]),
        ("seeds", [1, 2, 3]),
        ("shots", [1, 2, 4]),
    ],
)
def test_values_that_a_run_does_not_depend_on_leave_its_digest(document, write, before, key, value):
    document[key] = value
    after = digests(load_study(write()))
    assert before.items() <= after.items()


def test_a_title_is_no_part_of_the_digest_of_a_study(document, write):
    before = load_study(write()).digest
    document["title"] = "Another title"
    assert load_study(write()).digest == before
    document["seeds"] = [1]
    assert load_study(write()).digest != before


def test_another_method_leaves_the_digests_of_the_others(document, write, before):
    document["methods"]["wide"] = document["methods"]["block_lora"] | {"rank": 8}
    assert before.items() <= digests(load_study(write())).items()


@pytest.mark.parametrize("key", ["learning_rate", "iterations_per_shot", "flip_probability"])
def test_the_recipe_changes_trained_runs_and_not_zero_shot(document, write, before, key):
    document["recipe"][key] = 1
    after = digests(load_study(write()))
    same = {run.method for run in before if before[run] == after[run]}
    assert same == {"zero_shot"}


def test_the_prompt_changes_every_run(document, write, before):
    document["recipe"]["prompt"] = "a picture of a {}."
    after = digests(load_study(write()))
    assert not set(before.values()) & set(after.values())


def test_an_adapter_changes_its_runs_alone(document, write, before):
    document["methods"]["block_lora"]["dropout"] = 0.1
    after = digests(load_study(write()))
    changed = {run.method for run in before if before[run] != after[run]}
    assert changed == {"block_lora"}


def test_precision_changes_every_run_and_the_engine_trained_ones(write, before):
    study = load_study(write())
    assert not set(before.values()) & set(digests(study, precision="bf16").values())
    changed = digests(study, engine="reference")
    assert {run.method for run in before if before[run] != changed[run]} == {"block_lora"}


def test_digests_are_all_different(before):
    assert len(set(before.values())) == len(before)


def test_an_own_dataset_is_part_of_its_runs_alone(document, write, tmp_path):
    document["datasets"].append("mine")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    document["own_datasets"] = {"mine": {"images": str(tmp_path / "a")}}
    before = digests(load_study(write()))
    document["own_datasets"]["mine"]["images"] = str(tmp_path / "b")
    after = digests(load_study(write()))
    assert {run.dataset for run in before if before[run] != after[run]} == {"mine"}


def test_own_images_that_change_change_their_runs(document, write, tmp_path):
    """What is there is told by names, sizes and times; images that are elsewhere are no fault."""
    document["datasets"].append("mine")
    document["own_datasets"] = {"mine": {"images": str(tmp_path / "a")}}
    found = [digests(load_study(write()))]
    (tmp_path / "a/train/cat").mkdir(parents=True)
    image = tmp_path / "a/train/cat/1.png"
    for change in (
        lambda: image.touch(),
        lambda: image.write_text("x"),
        lambda: os.utime(image, (0, 0)),
    ):
        change()
        found.append(digests(load_study(write())))
        changed = {run.dataset for run in found[-1] if found[-1][run] != found[-2][run]}
        assert changed == {"mine"}
    assert digests(load_study(write())) == found[-1]


def test_reading_a_study_imports_nothing_heavy(write):
    code = (
        "import sys; from blocklora.study.study import load_study; load_study(sys.argv[1]); "
        "print({'torch', 'open_clip', 'pandas', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(write())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["study", "config"])
def test_every_key_of_a_schema_says_what_is_allowed(name):
    def keys(schema):
        if isinstance(schema, dict):
            yield from schema.get("properties", {}).items()
            for part in schema.values():
                yield from keys(part)

    schema = yaml.safe_load(schema_text(name))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    silent = [
        key
        for key, value in keys(schema)
        if value is not True and not value.keys() & {"description", "$ref"}
    ]
    assert silent == []


@pytest.mark.parametrize("name", ["study", "config"])
def test_making_a_schema_for_editors_leaves_that_of_messages_alone(name):
    kinds = [Study, Config]
    before = deepcopy([json_schema(kind) for kind in kinds])
    schema_text(name)
    assert [json_schema(kind) for kind in kinds] == before


@pytest.mark.parametrize("name", ["study", "config"])
def test_the_schemas_of_editors_are_those_that_are_checked(name):
    """`make schemas` writes them."""
    path = ROOT / "workflow" / "schemas" / f"{name}.schema.yaml"
    assert path.read_text(encoding="utf-8") == schema_text(name)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_configuration_says_which_precisions_need_a_gpu(precision):
    """The comment in config.yaml agrees with what the device is asked for."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    (comment,) = [line for line in text.splitlines() if line.startswith("# In which precision")]
    assert precision in comment
    assert (f"{precision} needs a GPU" in comment) == (not PRECISIONS[precision].on_cpu)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_the_precision_of_the_device_and_no_other_is_replaced(device):
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    (said,) = re.findall(rf"(fp\d+) on a {'GPU' if device == 'cuda' else 'CPU'}", text)
    assert resolve_precision("auto", device) == said
    assert [resolve_precision(name, device) for name in PRECISIONS] == [*PRECISIONS]


def test_a_method_may_have_its_own_recipe(document, write, before):
    document["methods"]["block_lora"]["recipe"] = {"learning_rate": 0.5, "prompt": "one {}"}
    study = load_study(write())
    recipe = study.methods["block_lora"].recipe
    assert (recipe.learning_rate, recipe.prompt) == (0.5, "one {}")
    assert recipe.batch_size == study.recipe.batch_size
    after = digests(study)
    assert {run.method for run in before if before[run] != after[run]} == {"block_lora"}


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"learning_rat": 1}, "methods.block_lora.recipe.learning_rat: unknown key; did you mean"),
        ({"batch_size": 0}, "methods.block_lora.recipe.batch_size: 0 is not allowed"),
        ({"learning_rate": 1e-9}, "methods.block_lora.recipe.final_learning_rate: 1e-06 is not"),
        ({"crop_scale": [1, 0.5]}, "methods.block_lora.recipe.crop_scale: [1, 0.5] is not allow"),
    ],
)
def test_a_fault_in_a_methods_recipe_is_one_line(document, write, own, line):
    document["methods"]["block_lora"]["recipe"] = own
    with pytest.raises(UserError) as caught:
        load_study(write())
    assert str(caught.value).partition(": ")[2].startswith(line)
