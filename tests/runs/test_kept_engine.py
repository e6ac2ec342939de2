"""What fits by an engine that is kept on a GPU say about their memory; the GPU is a stand-in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.engine import loop
from blocklora.engine.fast import FastEngine
from blocklora.engine.plan import Plan
from blocklora.methods.base import Compute, Shots, Task
from blocklora.methods.low_rank import LowRankAdapter
from tests.runs.small_study import fit, record_of
from tests.tiny import LORA, RECIPE, tiny_backbone

GPU = Compute("cuda", "fp16", "fast", workers=0)


class Pictures:
    """Images that nothing looks at."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count


@pytest.fixture
def fit_on_gpu(monkeypatch):
    """Return a function that fits with a setting and a seed, and returns the facts.

    Its last argument is the largest memory that PyTorch counts meanwhile.
    """
    initialise = Adapter.initialise

    class Engine(FastEngine):
        def __init__(self, backbone, adapter, prompts, **options):
            self.adapter, self.seed = adapter, options["seed"]

        recorded = True

    def within_memory(setting, device, attempt, known):
        plan = known or Plan(None, 5000)
        return attempt(plan.chunks), plan

    monkeypatch.setattr(Adapter, "initialise", lambda *arguments: initialise(*arguments[:3]))
    monkeypatch.setattr("blocklora.engine.engines.load_engine", lambda name: Engine)
    monkeypatch.setattr("blocklora.engine.plan.train_within_memory", within_memory)
    monkeypatch.setattr(loop, "train", lambda *arguments: loop.History([]))
    task = Task(tiny_backbone(), ["cat", "dog"], lambda prompt: [[1, 2], [1, 3]])

    def fitted(config, seed, counted, images=8):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counted)
        shots = Shots(Pictures(images), np.arange(images) % 2, images // 2, seed)
        made = LowRankAdapter().fit(config, RECIPE, task, shots, GPU, loop.Keeper())
        return made.facts

    return fitted


def test_fits_by_one_engine_report_the_memory_of_the_steps_that_the_first_recorded(fit_on_gpu):
    """A replay allocates nothing that PyTorch counts."""
    other = replace(LORA, rank=2)
    fits = [(LORA, 1, 900), (LORA, 2, 300), (LORA, 3, 950), (other, 1, 400), (LORA, 1, 800)]
    found = [fit_on_gpu(*each)["peak_memory_bytes"] for each in fits]
    assert found == [900, 900, 950, 400, 800]


def test_an_engine_is_kept_only_for_batches_of_the_size_that_it_has_recorded(fit_on_gpu):
    """Batches of up to four images are all as large as the first of a run."""
    fits = [(8, 900), (6, 300), (2, 500), (2, 100), (8, 700)]
    found = [fit_on_gpu(LORA, 1, memory, images)["peak_memory_bytes"] for images, memory in fits]
    assert found == [900, 900, 500, 500, 700]


def test_what_a_fit_says_of_its_memory_is_recorded(prepared, tmp_path, monkeypatch):
    assert fit(prepared, tmp_path / "measured") == 0
    learn = LowRankAdapter.fit

    def said(self, *arguments):
        found = learn(self, *arguments)
        return replace(found, facts={**found.facts, "peak_memory_bytes": 7})

    monkeypatch.setattr(LowRankAdapter, "fit", said)
    assert fit(prepared, tmp_path / "said") == 0
    costs = [record_of(tmp_path / name, 1)["cost"] for name in ("measured", "said")]
    assert costs[0].keys() == costs[1].keys()
    assert costs[0]["peak_memory_bytes"] > 1e6
    assert costs[1]["peak_memory_bytes"] == 7
