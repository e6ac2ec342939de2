"""Steps and evaluations on a GPU compute what they should, recorded and in each precision."""

import pytest
import torch
import torch.nn.functional as F

from tests.gpu import setting as gpu
from tests.gpu.setting import WHOLE, Chunks, ReferenceEngine

pytestmark = pytest.mark.gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUT = Chunks(tokens=20, images=3)
# Of a recorded step from the same kernels launched one by one, some of which sum in any order.
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
# Of losses and gradients from those of fp32.
PRECISION = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}
# Batch, heads, queries, keys, and whether the attention is causal.
ATTENTION = {
    "vision": (32, 12, 197, 197, False),
    "pooled image": (32, 12, 1, 197, False),
    "prompts of 9 tokens": (508, 8, 9, 9, True),
    "one prompt of 18 tokens": (1, 8, 18, 18, True),
    "pooled prompts": (508, 8, 1, 9, False),
    "one pooled prompt": (1, 8, 1, 15, False),
    "pooled image of ViT-L": (32, 16, 1, 257, False),
}


def test_gpu_is_accepted_and_has_a_name(precision):
    gpu.require_device(gpu.DEVICE, precision)
    assert gpu.device_name(gpu.DEVICE)


def attended(q, k, v, seed, causal):
    """Return PyTorch's attention and its gradients."""
    inputs = [value.detach().requires_grad_() for value in (q, k, v)]
    out = F.scaled_dot_product_attention(*inputs, is_causal=causal)
    return [out.detach(), *torch.autograd.grad(out, inputs, seed)]


def attended_by_formula(q, k, v, seed, causal):
    """Return softmax attention and its gradients in float64."""
    q, k, v = (value.detach().double().requires_grad_() for value in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    out = scores.softmax(-1) @ v
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), seed.double())]


@pytest.mark.parametrize("negative", [False, True], ids=["usual", "very_negative"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_the_formula_and_finite(precision, case, negative):
    """The kernel that is taken differs with the GPU and the shape; some have returned NaN."""
    gpu.engine(gpu.small())  # makes whatever choice of kernels the package makes
    images, heads, queries, keys, causal = ATTENTION[case]
    generator = torch.Generator().manual_seed(0)
    # Views of one tensor, as in the towers.
    joined = torch.randn(images * keys, 3 * heads * 64, generator=generator)
    joined = joined.to(gpu.DEVICE, DTYPES[precision])
    q, k, v = (part.view(images, keys, heads, 64).transpose(1, 2) for part in joined.chunk(3, 1))
    q = q[:, :, :queries]
    if negative:
        q, k = 0.1 * q, 0.1 * k
        q[..., 0], k[..., 0] = 1, -960
    seed = torch.randn(images, queries, heads, 64, generator=generator).transpose(1, 2)
    inputs = q, k, v, seed.to(gpu.DEVICE, DTYPES[precision]), causal
    found = attended(*inputs)
    assert all(value.isfinite().all() for value in found)
    if not negative:  # else differences cancel in 16 bits
        wanted = attended_by_formula(*inputs)
        assert gpu.apart(found, wanted) < (1e-3 if precision == "fp32" else 3e-2)


@pytest.mark.parametrize("chunks", [WHOLE, CUT], ids=["whole", "chunks"])
def test_step_is_recorded_once_for_whole_and_last_batches(precision, chunks):
    """Steps of 4 and 2 images share one recording, so that memory for one is enough."""
    subject, history = gpu.trained(gpu.small(precision), count=5, images=6, chunks=chunks)
    assert gpu.recordings(subject) == 1
    assert [row["step"] for row in history.rows] == [5]


@pytest.mark.parametrize("chunks", [WHOLE, CUT], ids=["whole", "chunks"])
def test_recorded_steps_equal_plain_ones(precision, chunks):
    which, sizes = gpu.small(precision), (4, 4, 3, 4)
    recorded = gpu.engine(which, chunks=chunks)
    plain = gpu.engine(which, chunks=chunks, cuda_graphs=False)
    wanted = gpu.steps(plain, which, sizes)
    assert gpu.apart(gpu.steps(recorded, which, sizes), wanted) < ROUNDING[precision]
    assert gpu.recordings(recorded) > 0


@pytest.mark.parametrize("chunks", [WHOLE, CUT], ids=["whole", "chunks"])
def test_fast_engine_equals_the_reference(precision, chunks):
    """The reference computes in fp32; dropout is off, since its masks are of its own."""
    fast, exact = (gpu.small(kind, dropout=0.0) for kind in (precision, "fp32"))
    wanted = gpu.steps(gpu.engine(exact, ReferenceEngine), exact, [4, 3])
    found = gpu.steps(gpu.engine(fast, chunks=chunks), fast, [4, 3])
    assert gpu.apart(found, wanted) < PRECISION[precision]


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.1])
def test_gpu_computes_what_the_cpu_does(dropout):
    """Not even dropout differs, since a GPU's masks are those of the CPU."""
    which = gpu.small(dropout=dropout)
    wanted = gpu.steps(gpu.engine(which, device="cpu"), which, [4, 3, 4])
    assert gpu.apart(gpu.steps(gpu.engine(which), which, [4, 3, 4]), wanted) < 1e-3


@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "zero_shot"])
def test_evaluation_equals_that_of_the_cpu(precision, adapted):
    pixels = gpu.batch(gpu.small(), 300)[0].numpy()  # more than are evaluated at a time
    cosines = []
    for device, kind in (("cpu", "fp32"), (gpu.DEVICE, precision)):
        which = gpu.small(kind)
        adapter = gpu.engine(which, device=device).adapter if adapted else None
        cosines.append(gpu.cosines(which, pixels, adapter, device))
    wanted, found = cosines
    assert found.device.type == "cpu"
    assert (found - wanted).abs().max() < {"fp32": 1e-4, "bf16": 2e-2, "fp16": 3e-3}[precision]
