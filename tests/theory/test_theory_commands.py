"""The commands on a small study: random weights, three adapters, a handful of images."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.merge import merge
from blocklora.adapters.store import load_adapter, save_adapter
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.published import published_config
from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.csvfiles import write_rows
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.data.pixels import pack_json
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import Chunks
from blocklora.engine.needs import Setting, counted_bytes
from blocklora.files import file_digest
from blocklora.study.study import load_study
from blocklora.theory.counting import flop_counter
from blocklora.theory.efficiency import step_cost
from blocklora.theory.sources import PROMPT_LENGTHS, read_shape, stand_ins, unlisted_datasets
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
    study["miniature"] |= {
        "embed_dim": SHAPE.embed_dim,
        "context_length": SHAPE.context_length,
        "vision": vars(SHAPE.vision),
        "text": vars(SHAPE.text),
    }
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


def measure(name, results, *outputs, study=None):
    study = study or results / "small.yaml"
    return run("measure", name, "--study", study, "--results", results, "--output", *outputs)


def copy(results, folder):
    """Copy the finished study, so that its files can be damaged."""
    shutil.copytree(results, folder)
    return folder


def test_bounds_and_gaps_of_a_study(results, tmp_path):
    folder = copy(results, tmp_path / "results")
    bounds, gaps = folder / "theory/bounds.csv", folder / "theory/gaps.csv"
    assert measure("bounds", folder, bounds) == 0
    rows = read(bounds)
    assert {row["method"] for row in rows} == {
        "clip_lora", "clip_lora_b_only", "clip_lora_a_only", "block_lora", "block_lora_input",
    }  # fmt: skip
    assert {(row["classes"], row["samples"]) for row in rows} == {("3", "12")}
    assert measure("gaps", folder, gaps) == 0
    assert [row["gap"] for row in read(gaps)] == ["0.25"] * 4
    assert {row["vacuous"] for row in read(gaps)} == {"true"}


def test_gaps_name_the_table_they_lack(results, tmp_path, capsys):
    assert measure("gaps", results, tmp_path / "gaps.csv") == 1
    assert f"{results}/theory/bounds.csv: no such file" in capsys.readouterr().err


def test_runs_of_another_study_are_refused(results, tmp_path, capsys):
    folder = copy(results, tmp_path / "results")
    text = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(text.replace("block_lora", "other_lora"))
    assert measure("spectra", folder, tmp_path / "s.csv", tmp_path / "o.csv") == 1
    error = capsys.readouterr().err
    assert "the study has no method other_lora with an adapter, only clip_lora, block_lora" in error


def test_bounds_of_the_paper_need_no_file_but_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = ROOT / "studies/paper.yaml"
    assert run("measure", "bounds", "--study", study, "--output", tmp_path / "bounds.csv") == 0
    rows = read(tmp_path / "bounds.csv")
    counted = {row["method"]: int(row["parameters"]) for row in rows}
    assert (counted["clip_lora"], counted["block_lora"]) == (184_320, 138_240)
    assert len({row["dataset"] for row in rows}) == 11
    assert len(rows) == 11 * 5 * 5


@pytest.mark.parametrize("name", ["bounds", "efficiency"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(name, results, tmp_path, capsys):
    folder, path = copy(results, tmp_path / "results"), "data/own/manifest.csv"
    (folder / path).unlink()
    assert measure(name, folder, tmp_path / "x.csv") == 1
    error = capsys.readouterr().err
    assert f"{folder / path}: no such file, but it is needed for the class names" in error
    made = f"`snakemake --cores 1 results/small/{path} --config study={folder}/small.yaml`"
    assert made in error
    assert not (tmp_path / "x.csv").exists()


def test_a_backbone_file_that_is_not_what_it_says_is_refused(results, backbone, tmp_path, capsys):
    path = tmp_path / "mini-clip.safetensors"
    weights = {name: v for name, v in backbone.weights.items() if name != "logit_scale"}
    save_backbone(path, SHAPE, weights, "random numbers")
    assert run("bench", "--model", path) == 1
    assert "its tensors are not those of tiny" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert run("bench", "--model", path) == 1
    assert "not a readable backbone file" in capsys.readouterr().err


def test_spectra_of_every_run_and_overlaps_of_every_cell(results, tmp_path):
    outputs = tmp_path / "spectra.csv", tmp_path / "overlaps.csv"
    assert measure("spectra", results, *outputs) == 0
    rows, overlaps = map(read, outputs)
    assert len(rows) == 4 * 15
    assert {row["arms_max_relative_difference"] for row in rows} == {"", "0.0"}
    assert len(overlaps) == 2 * 15
    assert {(r["seed"], r["method"], r["other_method"]) for r in overlaps} == {
        ("1", "block_lora", "clip_lora"), ("2", "block_lora", "clip_lora"),
    }  # fmt: skip
    assert all(0 <= float(row["output_overlap"]) <= 1 for row in overlaps)


def test_spectra_name_a_damaged_adapter(results, tmp_path, capsys):
    folder = copy(results, tmp_path / "results")
    (folder / "runs" / folder_of("clip_lora", 1) / "adapter.safetensors").write_bytes(b"cut short")
    assert measure("spectra", folder, tmp_path / "s.csv", tmp_path / "o.csv") == 1
    assert "clip_lora/4shot/seed1/adapter.safetensors" in capsys.readouterr().err


def test_a_measure_wants_a_file_for_each_of_its_tables(results, tmp_path, capsys):
    assert measure("spectra", results, tmp_path / "s.csv") == 1
    error = capsys.readouterr().err
    assert "--output names 1 files, but spectra writes 2: spectra.csv, overlaps.csv" in error


def check_compression(results, backbone, output, prompt_of):
    rows = read(output)
    assert {(row["method"], int(row["seed"])) for row in rows} == set(RUNS)
    for row in rows:
        store = np.load(results / f"pixels/own/4shot/seed{row['seed']}.npz")
        pixels = store["pixels"].reshape(12, 32, 32, 3)
        path = results / "runs" / folder_of(row["method"], row["seed"]) / "adapter.safetensors"
        prompts = tokenize(class_prompts(NAMES, prompt_of[row["method"]]), 20)
        merged = replace(backbone, weights=merge(backbone.weights, load_adapter(path)))
        classes, _ = Classifier(merged, prompts, 30).predict(pixels)
        trained = (classes != store["labels"]).mean()
        # The guess may lose 0.01 of twelve images, which is none; it may be better by chance.
        assert float(row["train_error"]) <= trained
        assert float(row["compressed_bits"]) < 32 * load_adapter(path).trainable_parameters
        assert float(row["bound"]) >= float(row["train_error"])
        assert float(row["guessing_error"]) == pytest.approx(2 / 3)
        assert row["vacuous"] == str(float(row["bound"]) >= 2 / 3).lower()
    return [row["train_error"] for row in rows]


def test_compression_measures_the_error_on_the_shots(results, backbone, tmp_path):
    output = tmp_path / "compression.csv"
    assert measure("compression", results, output) == 0
    check_compression(results, backbone, output, dict.fromkeys(METHODS, "a photo of a {}."))


def test_compression_asks_with_the_prompt_of_the_method(results, backbone, tmp_path):
    study = yaml.safe_load((results / "small.yaml").read_text())
    study["methods"]["block_lora"]["recipe"] = {"prompt": "no {}"}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    output = tmp_path / "compression.csv"
    assert measure("compression", results, output, study=path) == 0
    prompts = {"clip_lora": "a photo of a {}.", "block_lora": "no {}"}
    check_compression(results, backbone, output, prompts)


def test_compression_refuses_a_precision_that_the_device_lacks(results, tmp_path, capsys):
    arguments = ("--study", results / "small.yaml", "--output", tmp_path / "x.csv")
    assert run("measure", "compression", *arguments, "--precision", "fp16") == 1
    assert "precision fp16 needs a GPU" in capsys.readouterr().err


def test_efficiency_of_a_study(results, tmp_path):
    output = tmp_path / "efficiency.csv"
    assert measure("efficiency", results, output) == 0
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


@pytest.fixture
def unlisted(results, tmp_path, monkeypatch):
    """A study of a published dataset whose prompts have no row in prompt_lengths.csv."""
    folder = copy(results, tmp_path / "results")
    study = yaml.safe_load((folder / "small.yaml").read_text())
    del study["own_datasets"]
    (folder / "small.yaml").write_text(yaml.safe_dump(study | {"datasets": ["dtd", "eurosat"]}))
    rows = [row for row in read(PROMPT_LENGTHS) if row["dataset"] != "dtd"]
    write_rows(tmp_path / "lengths.csv", tuple(rows[0]), rows)
    monkeypatch.setattr("blocklora.theory.sources.PROMPT_LENGTHS", tmp_path / "lengths.csv")
    return folder


def test_a_published_dataset_with_unlisted_prompts_is_known_to_need_its_manifest(unlisted):
    assert unlisted_datasets(load_study(unlisted / "small.yaml")) == ("dtd",)


def test_efficiency_of_a_dataset_with_unlisted_prompts_reads_its_manifest(
    unlisted, tmp_path, capsys
):
    output = tmp_path / "efficiency.csv"
    assert measure("efficiency", unlisted, output) == 1
    assert "snakemake --cores 1 results/small/data/dtd/manifest.csv" in capsys.readouterr().err
    (unlisted / "data/dtd").mkdir()
    (unlisted / "data/own/manifest.csv").rename(unlisted / "data/dtd/manifest.csv")
    assert measure("efficiency", unlisted, output) == 0
    assert {(row["dataset"], row["classes"]) for row in read(output)} == {
        ("dtd", "3"), ("eurosat", "10"),
    }  # fmt: skip


@pytest.mark.parametrize("prompt", ["a photo of a {}.", "no {}"])
def test_another_prompt_of_one_method_needs_every_manifest(unlisted, prompt):
    path = unlisted / "small.yaml"
    study = yaml.safe_load(path.read_text())
    study["methods"]["block_lora"]["recipe"] = {"prompt": prompt}
    path.write_text(yaml.safe_dump(study))
    expected = ("dtd",) if prompt == "a photo of a {}." else ("dtd", "eurosat")
    assert unlisted_datasets(load_study(path)) == expected


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
        peak = counted_bytes(Setting(SHAPE, config, prompts, 32, "fp32"), Chunks())
    assert found["flops_per_step_counted"] == counter.get_total_flops()
    arms_beyond_one = config.blocks - 1 if config.partition == "rank" else 0
    further = arms_beyond_one * config.rank // config.blocks * 3 * (3 * 32 + 2 * 16)
    assert 0 <= peak - found["planned_memory_bytes"] <= 4 * further


def test_shape_of_a_backbone_file_is_read_from_it(results):
    assert read_shape(results / "backbones/mini-clip.safetensors") == SHAPE
    assert published_config("ViT-B-16-quickgelu").tower_shapes == {
        "vision": (12, 768), "text": (12, 512),
    }  # fmt: skip
