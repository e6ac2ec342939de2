import copy

import pytest
import torch
from torch import nn

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.attach import Attachment, tower_shapes
from blocklora.adapters.config import AdapterConfig
from blocklora.adapters.merge import merge
from blocklora.backbones.model import build_open_clip
from blocklora.errors import UserError
from tests.tiny import LORA, SHAPE, tiny_backbone, trained_adapter


def make(**changes):
    return AdapterConfig(**{**LORA.__dict__, **changes})


VARIANTS = [
    make(),
    make(rank=4, blocks=2),
    make(rank=3, blocks=4, partition="input"),
    make(matrices=("v",), layers=(1, 1)),
    make(matrices=("q", "o"), towers=("text",), blocks=4),
    make(matrices=("q", "k", "v", "o"), towers=("vision",)),
]


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def inputs():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    prompts = torch.randint(1, 49000, (3, 20), generator=generator)
    prompts[torch.arange(3), torch.tensor([5, 9, 19])] = 49407
    return images, prompts


def features(model, double=False):
    images, prompts = inputs()
    with torch.no_grad():
        return model.encode_image(images.double() if double else images), model.encode_text(prompts)


@pytest.mark.parametrize("config", VARIANTS)
def test_adapted_forward_equals_dense_weights_in_float64(backbone, config):
    """W + s·ΔW is built here by hand, from the stored factors, into open_clip's own module."""
    adapter = trained_adapter(config, backbone)
    attached = build_open_clip(SHAPE, backbone.weights)
    attachment = Attachment(attached, adapter)
    dense = build_open_clip(SHAPE, backbone.weights).double()
    state = dense.state_dict()
    for name, down, up in adapter.matrices():
        tower, layer, matrix = name.split(".")
        prefix = "visual.transformer" if tower == "vision" else "transformer"
        attention = f"{prefix}.resblocks.{layer}.attn."
        b = up.detach().double()
        a = down.detach().double()
        if config.partition == "input":
            a = torch.cat([a] * config.blocks, 1)
        update = sum(arm @ a for arm in b) * config.alpha / config.rank**0.5
        width = update.shape[0]
        if matrix == "o":
            state[attention + "out_proj.weight"] += update
        else:
            row = "qkv".index(matrix) * width
            state[attention + "in_proj_weight"][row : row + width] += update
    for found, expected in zip(features(attached), features(dense, double=True), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert len(attachment.attentions) * len(config.matrices) == adapter.adapted_matrices


@pytest.mark.parametrize("config", VARIANTS)
def test_merged_weights_give_the_adapted_outputs(backbone, config):
    adapter = trained_adapter(config, backbone)
    attached = build_open_clip(SHAPE, backbone.weights)
    Attachment(attached, adapter)
    plain = build_open_clip(SHAPE, merge(backbone.weights, adapter))
    for found, expected in zip(features(plain), features(attached), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_merging_leaves_the_original_weights_untouched(backbone):
    before = copy.deepcopy(backbone.weights)
    merged = merge(backbone.weights, trained_adapter(LORA, backbone))
    assert all(torch.equal(backbone.weights[name], value) for name, value in before.items())
    changed = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert len(changed) == 5
    assert all(name.endswith("attn.in_proj_weight") for name in changed)


def test_detaching_restores_the_model_exactly(backbone):
    model = build_open_clip(SHAPE, backbone.weights)
    before = features(model)
    attachment = Attachment(model, trained_adapter(LORA, backbone))
    assert not torch.equal(features(model)[0], before[0])
    attachment.detach()
    assert all(torch.equal(a, b) for a, b in zip(features(model), before, strict=True))
    assert all(type(m) is nn.MultiheadAttention for m in model.modules() if hasattr(m, "num_heads"))


def test_fresh_adapter_leaves_outputs_unchanged(backbone):
    model = build_open_clip(SHAPE, backbone.weights)
    before = features(model)
    Attachment(model, Adapter.initialise(LORA, backbone.config.tower_shapes, torch.Generator()))
    for found, expected in zip(features(model), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adapter_parameters_are_the_only_ones_with_gradients(backbone):
    model = build_open_clip(SHAPE, backbone.weights)
    adapter = trained_adapter(LORA, backbone)
    Attachment(model, adapter)
    images, prompts = inputs()
    (model.encode_image(images).sum() + model.encode_text(prompts).sum()).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())


@pytest.mark.parametrize("partition", ["rank", "input"])
def test_gradients_equal_finite_differences(backbone, partition):
    config = make(rank=2, blocks=2, partition=partition, matrices=("q", "v", "o"))
    model = build_open_clip(SHAPE, backbone.weights).double()
    adapter = trained_adapter(config, backbone)
    for factors in adapter.towers.values():
        factors.down.data, factors.up.data = factors.down.data.double(), factors.up.data.double()
    Attachment(model, adapter)
    images, prompts = inputs()

    def loss():
        image = model.encode_image(images.double(), normalize=True)
        text = model.encode_text(prompts, normalize=True)
        return 100 * (image @ text.T)[0, 1]

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = loss()
            parameter -= 2e-5 * direction
            below = loss()
            parameter += 1e-5 * direction
        slope = (parameter.grad * direction).sum().item()
        assert (above - below).item() / 2e-5 == pytest.approx(slope, rel=1e-5)


def test_each_projection_has_its_own_dropout_mask(backbone):
    model = build_open_clip(SHAPE, backbone.weights)
    adapter = trained_adapter(make(dropout=0.25), backbone)
    attachment = Attachment(model, adapter)
    attention = attachment.attentions["vision.0"]
    attention.train()
    x = torch.ones(64, 17, 32)
    torch.manual_seed(0)
    updates = {m: attention._update(m, x).detach() for m in "qkv"}
    # ΔW·x with x zeroed at random: distinct tokens differ, and q, k, v drop different inputs.
    drops = []
    for index, matrix in enumerate("qkv"):
        factors = adapter.towers["vision"]
        dense = factors.up[0, index].sum(0) @ factors.down[0, index] * adapter.config.scale
        rows = updates[matrix].flatten(0, 1)
        expected = dense.sum(1).detach()
        torch.testing.assert_close(rows.mean(0), expected, rtol=0.2, atol=0.15)
        drops.append(torch.linalg.lstsq(dense.detach(), rows.T).solution)
    assert not torch.allclose(drops[0], drops[1], atol=1e-2)
    attention.eval()
    torch.testing.assert_close(attention._update("q", x), attention._update("q", x))


def test_a_model_without_that_attention_is_refused():
    with pytest.raises(UserError, match=r"has no transformer at visual\.transformer"):
        tower_shapes(nn.Linear(2, 2))


def test_another_attention_class_is_refused(backbone):
    model = build_open_clip(SHAPE, backbone.weights)
    model.transformer.resblocks[1].attn = nn.Linear(16, 16)
    with pytest.raises(
        UserError, match=r"uses Linear, but adapters need a batch-first nn\.MultiheadAttention"
    ):
        tower_shapes(model)


def test_an_adapter_of_another_backbone_is_refused(backbone):
    adapter = Adapter.initialise(LORA, {"vision": (3, 64), "text": (2, 16)}, torch.Generator())
    with pytest.raises(UserError, match="belongs to another backbone"):
        Attachment(build_open_clip(SHAPE, backbone.weights), adapter)
    with pytest.raises(UserError, match="trained on another backbone"):
        merge(backbone.weights, adapter)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)],
)
@pytest.mark.parametrize("masks", [False, True], ids=["no_dropout", "masks"])
def test_an_adapter_is_attached_to_a_model_in_any_precision(backbone, dtype, tolerance, masks):
    config = make(matrices=("q", "k", "v", "o"), blocks=2)
    found = []
    for kind in (torch.float32, dtype):
        model = build_open_clip(SHAPE, backbone.weights).to(kind)
        attachment = Attachment(model, trained_adapter(config, backbone))
        for attention in attachment.attentions.values() if masks else ():
            attention.masks = torch.ones(4, 1, 1, 1)
        images, prompts = inputs()
        with torch.no_grad():
            found.append([model.encode_image(images.to(kind)), model.encode_text(prompts)])
    for exact, other in zip(*found, strict=True):
        assert other.dtype == dtype
        assert (other.float() - exact).norm() < tolerance * exact.norm()
