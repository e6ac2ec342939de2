import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from blocklora.adapters.adapter import Adapter
from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.engine.batches import Batches
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.needs import Setting, planned_peak_bytes
from blocklora.performance.forecast import flops_of_shots, forward_flops, planned_flops
from blocklora.theory.counting import flop_counter
from tests.tiny import LORA, RECIPE, SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]
NAMES = ("red cat", "house", "blue_bird", "an old tram")
PROMPTS = tuple((1, *[2 + i] * (1 + i % 4), 3) for i in range(10))
SETTING = Setting(SHAPE, replace(LORA, dropout=0.25), PROMPTS, batch_size=8, precision="fp32")


def counted_flops(setting, chunks):
    backbone = tiny_backbone()
    adapter = Adapter.initialise(setting.adapter, backbone.config.tower_shapes, torch.Generator())
    engine = FastEngine(backbone, adapter, setting.prompts, logit_scale=1, seed=0, chunks=chunks)
    images = torch.zeros(setting.batch_size, 32, 32, 3, dtype=torch.uint8)
    labels = torch.zeros(setting.batch_size, dtype=torch.long)
    with flop_counter() as counter:
        engine.step(images, labels, 0, torch.amp.GradScaler(enabled=False))
    return counter.get_total_flops()


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(tokens=12), Chunks(tokens=20, images=3)])
def test_planned_operations_are_what_torch_counts(chunks):
    assert planned_flops(SETTING, chunks) == counted_flops(SETTING, chunks)


class SameImage(list):
    """So many images, all of them black."""

    def __init__(self, count):
        super().__init__(range(count))

    def image(self, index):
        return np.zeros((40, 40, 3), np.uint8)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_operations_of_shots_are_those_of_batches_for_a_gpu(shots, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a GPU
    images = SameImage(shots * len(PROMPTS))
    recipe = replace(RECIPE, batch_size=SETTING.batch_size)
    labels = torch.zeros(len(images), dtype=torch.long)
    batches = Batches(images, labels, recipe, 32, seed=0, workers=0, for_gpu=True)
    steps = -(-len(images) // recipe.batch_size)
    (size,) = {len(pixels) for pixels, _ in batches.iterate(0, steps)}
    expected = planned_flops(replace(SETTING, batch_size=size), Chunks())
    assert flops_of_shots(SETTING, Chunks(), shots) == expected


def test_testing_an_image_costs_a_forward_pass():
    backbone = tiny_backbone()
    from blocklora.engine.towers import VisionTower

    with flop_counter() as counter, torch.no_grad():
        VisionTower(backbone)(torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
    assert counter.get_total_flops() == 3 * forward_flops(SHAPE, LORA)


@pytest.fixture
def study_arguments(tmp_path):
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study |= {"name": "small", "datasets": ["own"], "shots": [1, 4], "seeds": [1, 2, 3]}
    del study["methods"]["block_lora"]
    study["own_datasets"] = {"own": {"images": str(tmp_path / "images")}}
    (tmp_path / "images").mkdir()
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    save_backbone(
        tmp_path / "backbones/mini-clip.safetensors", SHAPE, tiny_backbone().weights, "random"
    )
    images = [LabelledImage(f"train/{i}.png", i, name, "train") for i, name in enumerate(NAMES)]
    write_manifest(tmp_path / "data/own/manifest.csv", images)
    return [
        "plan",
        *("--study", str(tmp_path / "small.yaml")),
        *("--results", str(tmp_path)),
    ]


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_that_is_no_positive_number_is_refused(study_arguments, capsys, rate):
    assert main([*study_arguments, "--gpu-memory", "4GB", "--rate", rate]) == 1
    assert "is not a positive number" in capsys.readouterr().err


def test_plan_of_a_study_says_memory_chunks_and_time_of_every_kind(
    study_arguments, tmp_path, capsys
):
    output = tmp_path / "plan.json"
    options = ["--gpu-memory", "4GB", "--rate", "0.5", "--output", str(output)]
    assert main([*study_arguments, *options]) == 0
    plan = json.loads(output.read_text())
    assert plan["precision"] == "fp16"  # that of a GPU
    (kind,) = plan["kinds"]
    assert kind["method"] == "clip_lora"
    assert kind["classes"] == 4
    assert kind["chunks"] == {"tokens": None, "images": None}
    assert kind["step_seconds"] == pytest.approx(kind["flops_per_step"] / 0.5e12)
    steps = {run["shots"]: run["training_flops"] / run["seeds"] for run in kind["runs"]}
    # 50 steps a shot: at one shot of 4 images each, at four shots of 16 images each.
    assert steps[4] / 200 < kind["flops_per_step"]  # a batch would have 32
    assert 4 < steps[4] / steps[1] < 16
    assert plan["total_flops"] == sum(run["training_flops"] for run in kind["runs"])
    text = capsys.readouterr().out
    assert "mini-clip/own/clip_lora" in text
    assert "all 6 runs" in text


def test_less_memory_leads_to_chunks_and_too_little_to_one_message(
    study_arguments, tmp_path, capsys
):
    output = tmp_path / "plan.json"
    assert main([*study_arguments, "--gpu-memory", "4GB", "--output", str(output)]) == 0
    needed = json.loads(output.read_text())["kinds"][0]["planned_memory_bytes"]
    less = f"{(needed - 2**20) / 0.85 / 1e6:.3f}MB"
    assert main([*study_arguments, "--gpu-memory", less, "--output", str(output)]) == 0
    plan = json.loads(output.read_text())
    assert plan["total_seconds"] is None
    (kind,) = plan["kinds"]
    assert kind["planned_memory_bytes"] <= plan["usable_bytes"]
    assert kind["chunks"]["tokens"] or kind["chunks"]["images"]
    before = output.read_bytes()
    assert main([*study_arguments, "--gpu-memory", "0.2MB", "--output", str(output)]) == 1
    assert "use a device with more memory, a smaller batch_size" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize("size", ["8", "eight GB", "0GB", "8TB"])
def test_a_size_that_is_none_is_refused(size, study_arguments, capsys):
    assert main([*study_arguments, "--gpu-memory", size]) == 2
    assert "is not a size such as 8GB" in capsys.readouterr().err


def test_vit_b16_on_imagenet_fits_a_laptop():
    """In bf16 a step with the 1000 prompts of ImageNet fits 4 GB without chunks."""
    from blocklora.backbones.published import published_config
    from blocklora.study.study import load_study
    from blocklora.theory.context import Context
    from blocklora.theory.sources import PLAIN_PROMPT, dataset_prompts

    context = Context(load_study(ROOT / "studies/paper.yaml"), Path())
    prompts = tuple(map(tuple, dataset_prompts(context, PLAIN_PROMPT)["imagenet"]))
    setting = Setting(published_config("ViT-B-16-quickgelu"), LORA, prompts, 32, "bf16")
    assert 2e9 < planned_peak_bytes(setting, Chunks()) < 3.4e9
