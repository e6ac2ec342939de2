"""Tests on a GPU: `pytest -m gpu tests/gpu` needs neither Snakemake nor data nor weights."""

import gc

import pytest


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def precision(request):
    """Each precision the GPU computes in."""
    import torch

    if request.param == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bf16")
    return request.param


@pytest.fixture(autouse=True)
def memory_given_back(request):
    """Leave the GPU's memory to the next test and to the processes it starts."""
    yield
    if request.node.get_closest_marker("gpu"):
        import torch

        gc.collect()
        torch.cuda.empty_cache()
