"""The memory that is planned is the memory that a step takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.backbones.published import published_config
from blocklora.engine import needs
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.graphs import Recordings
from blocklora.engine.masks import draw_masks
from blocklora.engine.memory import TensorMemory
from blocklora.engine.needs import (
    PRODUCT_WORKSPACE,
    Setting,
    Timeline,
    counted_bytes,
    planned_peak_bytes,
    tensor_bytes,
)
from blocklora.engine.plan import plan
from blocklora.performance.measure import settings
from tests.tiny import LORA, SHAPE, tiny_backbone

ADAPTER = replace(LORA, blocks=2, dropout=0.25)
PROMPTS = tuple((1, *[2 + i] * (1 + i % 4), 3) for i in range(12))
SETTING = Setting(SHAPE, ADAPTER, (*PROMPTS, PROMPTS[0]), batch_size=4, precision="fp32")
CHUNKS = [Chunks(), Chunks(tokens=25), Chunks(tokens=10, images=2), Chunks(images=1)]
ADAPTERS = {
    "both_towers": {},
    "no_dropout": {"dropout": 0.0},
    "vision": {"towers": ("vision",), "matrices": ("q", "k", "v", "o")},
    "text": {"towers": ("text",), "blocks": 1},
    "last_layer": {"layers": (1, 1)},
}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def counted_peak(backbone, setting, chunks, record=None):
    """Run a step and count; as in training, the optimizer has two moments of every parameter."""
    with TensorMemory() as memory:
        copied = {name: weight.clone() for name, weight in backbone.weights.items()}
        adapter = Adapter.initialise(
            setting.adapter, backbone.config.tower_shapes, torch.Generator().manual_seed(0)
        )
        engine = FastEngine(
            replace(backbone, weights=copied),
            adapter,
            setting.prompts,
            logit_scale=100.0,
            seed=0,
            precision=setting.precision,
            chunks=chunks,
        )
        if record is not None:
            engine._recordings = Recordings(record)
        optimizer = torch.optim.AdamW(adapter.parameters())
        for parameter in adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            del state["step"]
        images = torch.zeros(setting.batch_size, 32, 32, 3, dtype=torch.uint8)
        labels = torch.zeros(setting.batch_size, dtype=torch.long)
        del copied, parameter, state
        memory.peak_bytes = memory.live_bytes
        if engine.fixed_text is not None:  # before the first step
            with torch.no_grad():
                engine._encode_text(None)
        engine.step(images, labels, 0, torch.amp.GradScaler(enabled=False))
    return memory.peak_bytes


def changed(adapter, precision):
    return replace(SETTING, adapter=replace(ADAPTER, **ADAPTERS[adapter]), precision=precision)


@pytest.mark.parametrize("adapter", ["both_towers", "vision"])
def test_a_step_on_fake_tensors_takes_the_bytes_of_a_real_one(backbone, adapter):
    setting, chunks = changed(adapter, "bf16"), Chunks(tokens=25, images=3)
    assert counted_bytes(setting, chunks) == counted_peak(backbone, setting, chunks)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_planned_tensors_are_those_of_a_step(backbone, precision, adapter, chunks):
    """There may be a few more, as all chunks count as if they were as large as the largest one."""
    setting = changed(adapter, precision)
    counted = counted_peak(backbone, setting, chunks)
    assert counted <= tensor_bytes(setting, chunks) <= 1.05 * counted


@pytest.mark.parametrize("chunks", CHUNKS)
def test_recorded_steps_fit_into_what_is_planned(backbone, chunks):
    """A recording keeps places for inputs and outputs beside the tensors of a step."""

    def record(compute, inputs):
        outputs = compute(*inputs)
        return lambda: None, outputs

    counted = counted_peak(backbone, SETTING, chunks, record)
    planned = planned_peak_bytes(SETTING, chunks) - 2 * PRODUCT_WORKSPACE
    assert counted <= planned
    assert counted > tensor_bytes(SETTING, chunks)


def test_planned_bytes_of_the_paper_are_those_of_its_whole_step():
    """1000 prompts of many lengths, from runs with four or five prompts of two lengths."""
    shape = published_config("ViT-B-16-quickgelu")
    towers = {name: replace(getattr(shape, name), layers=3) for name in ("vision", "text")}
    shape = replace(shape, **towers)  # the other layers would only take time
    (setting,) = settings(shape, [1000], [32], ["both"], ["fp16"])
    counted = counted_bytes(setting, Chunks())
    assert counted <= tensor_bytes(setting, Chunks()) <= 1.03 * counted
    # The largest group of prompts has 508 of 9 tokens, each of which takes a tile of 128 queries.
    workspace = 508 * 128 * 512 * 4
    rounded = tensor_bytes(setting, Chunks(), rounded=True)
    places = 32 * (3 * 224**2 + 8) + 4 * 184_320 // 4
    assert planned_peak_bytes(setting, Chunks()) == (
        rounded + workspace + 2 * PRODUCT_WORKSPACE + 2 * places
    )
    assert counted < rounded < 1.05 * counted


def test_planning_with_little_memory_runs_few_short_steps(monkeypatch):
    """Their number depends neither on the budget nor on the prompts, whose chunks may be many."""
    runs = []
    run = needs._run

    def noted(*arguments):
        runs.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(needs, "_run", noted)
    adapter = replace(ADAPTER, alpha=3.0)  # so that no other test has planned for it
    for count in (30, 200):
        prompts = tuple((1, *[2 + i] * (1 + i % 15), 3) for i in range(count))
        setting = replace(SETTING, adapter=adapter, prompts=prompts)
        whole = planned_peak_bytes(setting, Chunks())
        smallest = planned_peak_bytes(setting, Chunks(max(map(len, prompts)), 1))
        for share in (0.2, 0.6):
            plan(setting, int(smallest + share * (whole - smallest)) + 100_000)
    assert len(runs) == 2 * (3 + 5)


def test_timeline_adds_up_rounded_tensors():
    """Three tensors: 100 bytes per token; 10 bytes; a mebibyte per sequence."""
    coefficients = np.array([[100, 0, 0], [0, 0, 10], [0, 2**20, 0]], float)
    timeline = Timeline(coefficients, np.array([0, 1, ~1, 2, ~0, ~2]), forward=3)
    exact = timeline.phases((7, 11), rounded=False)
    assert vars(exact) == {
        "forward": 710,
        "kept": 700,
        "backward": 700 + 11 * 2**20,
        "left": 0,
    }
    rounded = timeline.phases((7, 11), rounded=True)
    assert vars(rounded) == {
        "forward": 1024 + 512,
        "kept": 1024,
        "backward": 1024 + 12 * 2**20,
        "left": 0,
    }


def test_a_gpu_makes_masks_from_two_tensors_of_their_size():
    """As the plan assumes; the meta device takes the same way as a GPU."""
    with TensorMemory() as memory:
        draw_masks(3, 400, 64, 0.25, torch.empty((), dtype=torch.int64, device="meta"))
    assert 2 <= memory.peak_bytes / (3 * 400 * 64) < 2.2


def test_masks_count_if_they_need_more_than_anything_else():
    prompts = tuple((1, 2 + i, 3) for i in range(3000))
    setting = replace(SETTING, prompts=prompts, adapter=replace(ADAPTER, towers=("text",)))
    masks = 2 * 9000 * SHAPE.text.width
    without = replace(setting, adapter=replace(setting.adapter, dropout=0.0))
    found, other = (tensor_bytes(s, Chunks(3, 1), rounded=True) for s in (setting, without))
    assert found - other == pytest.approx(masks, rel=0.01)
