"""The commands on a small study: random weights, three adapters, a handful of images."""

import csv
import json
import lzma
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.store import load_adapter, save_adapter
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.published import published_config
from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.csvfiles import write_rows
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.data.pixels import pack_json
from blocklora.data.registry import PACKAGED, load_registry
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import Chunks
from blocklora.engine.plan import Setting, fake_step
from blocklora.files import file_digest
from blocklora.theory.counting import flop_counter
from blocklora.theory.efficiency import step_cost
from blocklora.theory.sources import PROMPT_LENGTHS, read_shape, stand_ins
from tests.tiny import LORA, SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]
NAMES = ("red cat", "house", "blue_bird")
BLOCK = replace(LORA, blocks=2)
METHODS = {"clip_lora": LORA, "block_lora": BLOCK}
RUNS = [(method, seed) for method in METHODS for seed in (1, 2)]


def folder_of(method, seed):
    return f"mini-clip/own/{method}/4shot/seed{seed}"


def equal_arms(config, backbone, seed):
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.initialise(config, backbone.config.tower_shapes, generator)
    with torch.no_grad():
        for tower in adapter.towers.values():
            tower.up[:, :, :1].normal_(0, 0.3, generator=generator)
            tower.up.copy_(tower.up[:, :, :1].expand_as(tower.up))
    return adapter


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def results(tmp_path_factory, backbone):
    """The folder of a finished study with one dataset of one's own."""
    folder = tmp_path_factory.mktemp("results")
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study |= {"name": "small", "datasets": ["own"], "shots": [4], "seeds": [1, 2]}
    study["own_datasets"] = {"own": {"images": str(folder / "images")}}
    (folder / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "images").mkdir()
    weights = folder / "backbones/mini-clip.safetensors"
    save_backbone(weights, SHAPE, backbone.weights, "random numbers")
    images = [
        LabelledImage(f"{split}/{label}.png", label, name, split)
        for split in ("train", "test")
        for label, name in enumerate(NAMES)
    ]
    write_manifest(folder / "data/own/manifest.csv", images)
    generator = np.random.default_rng(0)
    for seed in (1, 2):
        store = folder / f"pixels/own/4shot/seed{seed}.npz"
        store.parent.mkdir(parents=True, exist_ok=True)
        size = 32 * 32 * 3
        np.savez(
            store,
            pixels=generator.integers(0, 256, 12 * size, dtype=np.uint8),
            index=np.array([[number * size, 32, 32] for number in range(12)]),
            labels=np.arange(12) % 3,
            paths=pack_json([f"train/{number}.png" for number in range(12)]),
        )
    rows = []
    for method, seed in RUNS:
        adapter = equal_arms(METHODS[method], backbone, seed)
        path = folder / "runs" / folder_of(method, seed) / "adapter.safetensors"
        save_adapter(path, adapter, SHAPE.name, file_digest(weights))
        rows.append(run_row(method, seed, adapter.trainable_parameters))
    write_rows(folder / "runs.csv", tuple(rows[0]), rows)
    return folder


def run_row(method, seed, parameters):
    return {
        "backbone": "mini-clip", "dataset": "own", "method": method, "shots": 4, "seed": seed,
        "train_accuracy": 0.75, "test_accuracy": 0.5, "rank": 4, "partition": "rank",
        "blocks": METHODS[method].blocks, "trainable_parameters": parameters,
    }  # fmt: skip


def run(*arguments):
    return main([str(argument) for argument in arguments])


def read(path):
    return list(csv.DictReader(path.open()))


def study_files(results):
    return (
        "--study", results / "small.yaml",
        "--backbones", results / "backbones/mini-clip.safetensors",
        "--manifests", results / "data/own/manifest.csv",
    )  # fmt: skip


def test_bounds_and_gaps_of_a_study(results, tmp_path):
    bounds, gaps = tmp_path / "bounds.csv", tmp_path / "gaps.csv"
    assert run("bounds", *study_files(results), "--output", bounds) == 0
    rows = read(bounds)
    assert {row["method"] for row in rows} == {
        "clip_lora", "clip_lora_b_only", "clip_lora_a_only", "block_lora", "block_lora_input",
    }  # fmt: skip
    assert {(row["classes"], row["samples"]) for row in rows} == {("3", "12")}
    assert (
        run("gaps", "--aggregate", results / "runs.csv", "--bounds", bounds, "--output", gaps) == 0
    )
    assert [row["gap"] for row in read(gaps)] == ["0.25"] * 4
    assert {row["vacuous"] for row in read(gaps)} == {"true"}


def test_bounds_of_the_paper_need_no_file_but_the_study(tmp_path):
    study = ROOT / "studies/paper.yaml"
    assert run("bounds", "--study", study, "--output", tmp_path / "bounds.csv") == 0
    rows = read(tmp_path / "bounds.csv")
    counted = {row["method"]: int(row["parameters"]) for row in rows}
    assert (counted["clip_lora"], counted["block_lora"]) == (184_320, 138_240)
    assert len({row["dataset"] for row in rows}) == 11
    assert len(rows) == 11 * 5 * 5


def test_missing_knowledge_is_asked_for(results, tmp_path, capsys):
    study = ("bounds", "--study", results / "small.yaml", "--output", tmp_path / "x.csv")
    assert run(*study) == 1
    assert "dataset own: its number of classes is in its manifest" in capsys.readouterr().err
    manifest = results / "data/other/manifest.csv"
    assert run(*study, "--manifests", manifest) == 1
    assert "the study has no dataset other; it has own" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_backbone_file_that_is_not_what_it_says_is_refused(results, backbone, tmp_path, capsys):
    weights = {name: v for name, v in backbone.weights.items() if name != "logit_scale"}
    path = tmp_path / "mini-clip.safetensors"
    save_backbone(path, SHAPE, weights, "random numbers")
    arguments = [*study_files(results), "--output", tmp_path / "x.csv"]
    arguments[3] = path
    assert run("bounds", *arguments) == 1
    assert "its tensors are not those of tiny" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert run("bounds", *arguments) == 1
    assert "not a readable backbone file" in capsys.readouterr().err


def test_spectra_of_every_run_and_overlaps_of_every_cell(results, tmp_path):
    outputs = tmp_path / "spectra.csv", tmp_path / "overlaps.csv"
    assert run(
        "spectra", "--study", results / "small.yaml", "--aggregate", results / "runs.csv",
        "--runs", results / "runs",
        "--output", outputs[0], "--overlaps", outputs[1],
    ) == 0  # fmt: skip
    rows, overlaps = map(read, outputs)
    assert len(rows) == 4 * 15
    assert {row["arms_max_relative_difference"] for row in rows} == {"", "0.0"}
    assert len(overlaps) == 2 * 15
    assert {(r["seed"], r["method"], r["other_method"]) for r in overlaps} == {
        ("1", "block_lora", "clip_lora"), ("2", "block_lora", "clip_lora"),
    }  # fmt: skip
    assert all(0 <= float(row["output_overlap"]) <= 1 for row in overlaps)


def test_spectra_name_a_damaged_adapter(results, tmp_path, capsys):
    path = tmp_path / folder_of("clip_lora", 1) / "adapter.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    assert run(
        "spectra", "--study", results / "small.yaml", "--aggregate", results / "runs.csv",
        "--runs", tmp_path,
        "--output", tmp_path / "s.csv", "--overlaps", tmp_path / "o.csv",
    ) == 1  # fmt: skip
    assert "clip_lora/4shot/seed1/adapter.safetensors" in capsys.readouterr().err


def test_compression_measures_the_error_on_the_shots(results, backbone, tmp_path):
    output = tmp_path / "compression.csv"
    assert run(
        "compression", "--study", results / "small.yaml", "--aggregate", results / "runs.csv",
        "--results", results, "--output", output,
    ) == 0  # fmt: skip
    rows = read(output)
    assert {(row["method"], int(row["seed"])) for row in rows} == set(RUNS)
    for row in rows:
        store = np.load(results / f"pixels/own/4shot/seed{row['seed']}.npz")
        pixels = store["pixels"].reshape(12, 32, 32, 3)
        path = results / "runs" / folder_of(row["method"], row["seed"]) / "adapter.safetensors"
        prompts = tokenize(class_prompts(NAMES, "a photo of a {}."), 20)
        classifier = Classifier(backbone, load_adapter(path), prompts)
        trained = 1 - classifier.correct(pixels, store["labels"]) / 12
        assert float(row["train_error"]) <= trained + 0.01
        assert float(row["compressed_bits"]) < 32 * load_adapter(path).trainable_parameters
        assert float(row["bound"]) >= float(row["train_error"])
        assert float(row["guessing_error"]) == pytest.approx(2 / 3)
        assert row["vacuous"] == str(float(row["bound"]) >= 2 / 3).lower()


def test_compression_refuses_odd_tolerances(results, tmp_path, capsys):
    arguments = (
        "compression", "--study", results / "small.yaml", "--aggregate", results / "runs.csv",
        "--results", results, "--output", tmp_path / "x.csv",
    )  # fmt: skip
    assert run(*arguments, "--delta", 0.5) == 1
    assert "--delta must lie between" in capsys.readouterr().err


def test_efficiency_of_a_study(results, tmp_path):
    output = tmp_path / "efficiency.csv"
    assert run("efficiency", *study_files(results), "--output", output) == 0
    rows = read(output)
    assert [(r["method"], r["rank"], r["blocks"]) for r in rows[:5]] == [
        ("lora", "2", "1"), ("block_lora", "2", "2"),
        ("lora", "4", "1"), ("block_lora", "4", "2"), ("block_lora", "4", "4"),
    ]  # fmt: skip
    assert len(rows) == 13
    for row in rows:
        assert row["flops_per_step_formula"] == row["flops_per_step_counted"]
        assert int(row["planned_memory_bytes"]) > int(row["adapter_bytes"])
        parameters = int(row["parameters"])
        # Two moments of four bytes, and a step counter for each of the four tensors.
        assert int(row["optimizer_bytes"]) == 8 * parameters + 16
        assert 0 < int(row["adapter_bytes"]) - 4 * parameters < 6000


@pytest.mark.parametrize(
    "config",
    [
        replace(LORA, rank=8, blocks=4, dropout=0.25),
        replace(LORA, rank=2, blocks=2),
        replace(LORA, blocks=4, partition="input", dropout=0.25),
    ],
)
def test_a_step_counted_for_its_merged_rank_is_the_step_of_the_adapter(config):
    prompts = stand_ins([(3, 6), (2, 9)], 6)
    found = step_cost(SHAPE, config, prompts, 32, "fp32")
    with flop_counter() as counter:
        peak = fake_step(Setting(SHAPE, config, prompts, 32, "fp32"), Chunks())
    assert found["flops_per_step_counted"] == counter.get_total_flops()
    arms_beyond_one = config.blocks - 1 if config.partition == "rank" else 0
    further = arms_beyond_one * config.rank // config.blocks * 3 * (3 * 32 + 2 * 16)
    assert 0 <= peak - found["planned_memory_bytes"] <= 4 * further


def prompts_of(name):
    """Return the class prompts of a dataset whose class names are in the package."""
    dataset = load_registry()[name]
    if dataset.classes_file is not None:
        lines = (PACKAGED / dataset.classes_file).read_text().splitlines()
        names = [line.split(" ", 1)[1] for line in lines if not line.startswith("#")]
    else:
        lists = json.loads(lzma.decompress(dataset.packaged_split().read_bytes()))
        labelled = {label: name for part in lists.values() for _, label, name in part}
        names = [labelled[label] for label in sorted(labelled)]
    return tokenize(class_prompts(names, "a photo of a {}."), 77)


@pytest.mark.parametrize(
    "name",
    [
        "imagenet", "eurosat", "stanford_cars", "oxford_pets", "oxford_flowers", "caltech101",
        "dtd", "ucf101",
    ],
)  # fmt: skip
def test_listed_prompt_lengths_are_those_of_the_class_names(name):
    listed = {
        int(row["tokens"]): int(row["prompts"])
        for row in read(PROMPT_LENGTHS)
        if row["dataset"] == name
    }
    prompts = prompts_of(name)
    assert listed == Counter(len(prompt) for prompt in set(map(tuple, prompts)))
    assert len(prompts) == load_registry()[name].classes


def test_listed_prompts_of_all_eleven_datasets_are_complete():
    counted = Counter()
    for row in read(PROMPT_LENGTHS):
        counted[row["dataset"]] += int(row["prompts"])
    registry = load_registry()
    expected = {name: registry[name].classes for name in counted}
    # "missile" and "sunglasses" name two classes each.
    assert counted == expected | {"imagenet": 998}
    assert len(counted) == 11


def test_stand_ins_have_the_lengths_and_the_number_asked_for():
    prompts = stand_ins([(2, 5), (1, 7)], 5)
    assert [len(prompt) for prompt in prompts] == [5, 5, 7, 5, 5]
    assert len(set(map(tuple, prompts))) == 3


def test_shape_of_a_backbone_file_is_read_from_it(results):
    assert read_shape(results / "backbones/mini-clip.safetensors") == SHAPE
    assert published_config("ViT-B-16-quickgelu").tower_shapes == {
        "vision": (12, 768), "text": (12, 512),
    }  # fmt: skip
