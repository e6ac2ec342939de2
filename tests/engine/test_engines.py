"""The fast engine computes what the reference engine computes."""

from dataclasses import replace

import pytest
import torch

from blocklora.adapters.config import AdapterConfig
from blocklora.adapters.merge import merge
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.shape import ClipConfig
from blocklora.engine import classifier as classifier_module
from blocklora.engine.classifier import Classifier
from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.masks import draw_masks, kept
from blocklora.engine.memory import TensorMemory
from blocklora.engine.reference import ReferenceEngine
from tests.tiny import LORA, SHAPE, tiny_backbone, trained_adapter

NAMES = ["cat", "golden_retriever dog", "cat", "Boeing 737-800", "dog", "an owl"]
SCALER = torch.amp.GradScaler("cpu", enabled=False)


def make(**changes):
    return AdapterConfig(**{**LORA.__dict__, **changes})


VARIANTS = {
    "lora": make(),
    "block_lora": make(blocks=2),
    "input_partition": make(blocks=4, partition="input"),
    "with_o": make(matrices=("q", "k", "v", "o")),
    "some_matrices": make(matrices=("o", "v")),
    "some_layers": make(layers=(1, 1)),
    "last_layer_query": make(matrices=("q",), layers=(1, 1), towers=("text",)),
    "vision_only": make(towers=("vision",)),
    "text_only": make(towers=("text",), blocks=4),
}


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def backbone(request):
    return tiny_backbone(shape=ClipConfig(**{**SHAPE.__dict__, "quick_gelu": request.param}))


def batch(seed=0, images=4):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, len(NAMES), (images,), generator=generator)


def prompts():
    return tokenize(class_prompts(NAMES, "a photo of a {}."), SHAPE.context_length)


def step(kind, backbone, config, seed=1, **options):
    adapter = trained_adapter(config, backbone)
    engine = kind(backbone, adapter, prompts(), logit_scale=100.0, seed=seed, **options)
    loss, correct = engine.step(*batch(), 0, SCALER)
    return loss, correct, [parameter.grad for parameter in adapter.parameters()]


def assert_same(found, expected, tolerance=1e-4):
    assert found[0].item() == pytest.approx(expected[0].item(), rel=tolerance)
    assert found[1] == expected[1]
    for gradient, wanted in zip(found[2], expected[2], strict=True):
        assert (gradient - wanted).norm() <= tolerance * wanted.norm()
        assert wanted.norm() > 0


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_fast_engine_equals_the_reference(backbone, config):
    assert_same(step(FastEngine, backbone, config), step(ReferenceEngine, backbone, config))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_gradient_scaler_takes_the_gradients_of_the_fast_engine(config):
    backbone = tiny_backbone()
    adapter = trained_adapter(config, backbone)
    engine = FastEngine(backbone, adapter, prompts(), logit_scale=100.0, seed=1)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    engine.step(*batch(), 0, scaler)
    assert all(parameter.grad.is_contiguous() for parameter in adapter.parameters())
    scaler.step(optimizer)
    _, _, gradients = step(FastEngine, backbone, config)
    for old, new, gradient in zip(before, adapter.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [Chunks(1), Chunks(15, 3), Chunks(images=1), Chunks(30, 2)])
def test_chunks_leave_the_gradients_as_they_are(backbone, chunks):
    config = make(blocks=2)
    found = step(FastEngine, backbone, config, chunks=chunks)
    assert_same(found, step(FastEngine, backbone, config))


def test_chunks_save_memory(backbone):
    peaks = []
    for chunks in (Chunks(), Chunks(tokens=10, images=1)):
        with TensorMemory() as memory:
            step(FastEngine, backbone, make(), chunks=chunks)
        peaks.append(memory.peak_bytes)
    assert peaks[1] < 0.75 * peaks[0]


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(tokens=15, images=3)])
@pytest.mark.parametrize("config", [make(), make(matrices=("q", "k", "v", "o"), blocks=2)])
def test_dropout_with_given_masks_equals_the_reference(backbone, config, chunks):
    """Chunks are encoded twice, so this also shows that both passes drop the same inputs."""
    config = AdapterConfig(**{**config.__dict__, "dropout": 0.25})
    fast = FastEngine(
        backbone,
        trained_adapter(config, backbone),
        prompts(),
        logit_scale=100.0,
        seed=7,
        chunks=chunks,
    )
    reference = ReferenceEngine(
        backbone, trained_adapter(config, backbone), prompts(), logit_scale=100.0, seed=7
    )
    for name, attention in reference.attachment.attentions.items():
        attention.masks = reference_masks(fast, name, len(config.matrices))
    results = [
        (*engine.step(*batch(), 3, SCALER), [p.grad for p in engine.adapter.parameters()])
        for engine in (fast, reference)
    ]
    assert_same(*results)


def drawn(fast, tower, tokens):
    """Return the masks of the fast engine in step 3."""
    layers, dropout = len(tower.blocks), fast.adapter.config.dropout
    return draw_masks(layers, tokens, tower.width, dropout, fast._key(tower, 3))


def reference_masks(fast, name, matrices):
    """Return the fast engine's masks in the layout of the reference: matrix, sequence, token."""
    tower, layer = name.split(".")
    if tower == "vision":
        masks = drawn(fast, fast.vision, 4 * fast.vision.tokens)[int(layer)]
        laid_out = masks.view(4, fast.vision.tokens, -1)
        return kept(laid_out, torch.arange(matrices, dtype=torch.uint8)).float()
    lengths = [
        length for chunk in fast.chunks for count, length in chunk.groups for _ in range(count)
    ]
    rows = []
    for part in drawn(fast, fast.text, sum(lengths))[int(layer)].split(lengths):
        padded = torch.zeros(SHAPE.context_length, part.shape[1], dtype=torch.uint8)
        padded[: len(part)] = part
        rows.append(padded)
    laid_out = torch.stack(rows)[fast.rows]
    return kept(laid_out, torch.arange(matrices, dtype=torch.uint8)).float()


def test_dropout_has_the_reference_distribution(backbone):
    """Mean and spread of the loss over many masks agree with those of the reference."""
    config = make(dropout=0.5)
    losses = {}
    for kind in (FastEngine, ReferenceEngine):
        adapter = trained_adapter(config, backbone)
        engine = kind(backbone, adapter, prompts(), logit_scale=20.0, seed=1)
        losses[kind] = torch.stack([engine.step(*batch(), i, SCALER)[0] for i in range(150)])
    fast, reference = losses[FastEngine], losses[ReferenceEngine]
    error = (fast.var() / 150 + reference.var() / 150).sqrt()
    assert (fast.mean() - reference.mean()).abs() < 4 * error
    assert 0.7 < (fast.std() / reference.std()).item() < 1.4
    assert fast.std() > 0


@pytest.mark.parametrize("config", [None, *VARIANTS.values()], ids=["zero_shot", *VARIANTS])
def test_classifier_predicts_as_the_adapted_open_clip_model(backbone, config):
    from blocklora.adapters.attach import Attachment
    from blocklora.backbones.model import build_open_clip

    model = build_open_clip(backbone.config, backbone.weights)
    adapter = None
    if config is not None:
        adapter = trained_adapter(config, backbone)
        Attachment(model, adapter)
    pixels = batch(2, images=70)[0]
    tokens = torch.zeros(len(NAMES), SHAPE.context_length, dtype=torch.long)
    for row, prompt in zip(tokens, prompts(), strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    mean = torch.tensor(SHAPE.mean).view(3, 1, 1)
    std = torch.tensor(SHAPE.std).view(3, 1, 1)
    with torch.no_grad():
        images = model.encode_image((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, normalize=True)
        cosines = images @ model.encode_text(tokens, normalize=True).T
    if adapter is not None:
        backbone = replace(backbone, weights=merge(backbone.weights, adapter))
    classifier = Classifier(backbone, prompts(), logit_scale=20.0)
    predicted, probability = classifier.predict(pixels.numpy())
    chosen = cosines.gather(1, torch.from_numpy(predicted)[:, None])[:, 0]
    torch.testing.assert_close(chosen, cosines.max(1).values, rtol=0, atol=1e-5)
    expected = (20 * cosines.double()).softmax(1).max(1).values
    torch.testing.assert_close(torch.from_numpy(probability).double(), expected, rtol=0, atol=1e-4)


class Built(Exception):
    """Raised when both towers are."""


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "bf16", torch.float16),
        ("cuda", "fp16", torch.float16),
        ("cuda", "fp32", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
        ("cpu", "fp32", torch.float32),
    ],
)
def test_a_gpu_tests_in_a_precision_that_holds_the_weights(
    monkeypatch, device, precision, expected
):
    built = []

    def tower(backbone, device, dtype):
        built.append((device, dtype))
        if len(built) == 2:
            raise Built

    monkeypatch.setattr(classifier_module, "VisionTower", tower)
    monkeypatch.setattr(classifier_module, "TextTower", tower)
    with pytest.raises(Built):
        Classifier(tiny_backbone(), prompts(), 20.0, device, precision)
    assert built == [(device, expected)] * 2
