"""Pretraining a small CLIP for the miniature study on drawn image–caption pairs.

During training, the vocabulary of the text transformer has only the tokens of the captions, and its
context has the length of the longest caption. The backbone file has CLIP's full vocabulary and the
context length of the settings, so that it can encode any class name. Embeddings that no caption
needs are random, with the standard deviation that the trained ones had initially.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import cos, log, pi
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from blocklora.backbones.model import build_open_clip
from blocklora.backbones.prompts import tokenize
from blocklora.backbones.shape import ClipConfig
from blocklora.backbones.weights import save_backbone
from blocklora.miniature.captions import FORMS, NAMES, Pairs, all_captions
from blocklora.miniature.family import clip_config
from blocklora.miniature.settings import Settings

logger = logging.getLogger(__name__)

# Large compared to the updates of such a short training, so that words that appear in no caption
# differ from each other as much as those that do.
EMBEDDING_STD = 0.1
POSITION_STD = 0.01  # as in open_clip's text transformer
LOGIT_SCALE = 50.0  # initial value; the usual 1 / 0.07 is too low for so few steps
WARM_UP_SHARE = 0.1  # of all steps
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
LARGEST_GRADIENT = 1.0  # norm to which gradients are clipped
LOG_LINES = 10
HELD_OUT = 512  # number of pictures for testing


def pretrain_backbone(name: str, settings: Settings, path: str | Path) -> None:
    """Pretrain the small CLIP called `name` and write its backbone file.

    Equal settings give equal bytes on the same kind of CPU with the same number of threads.

    Raises:
        UserError: The context is too short for the captions, or the file cannot be written.
    """
    config = clip_config(name, settings)
    weights = pretrain(config, settings)
    source = (
        f"miniature: pretrained by blocklora for {settings.steps} steps on drawn pictures of "
        "shapes and letters; it exercises the pipeline and is no substitute for CLIP"
    )
    save_backbone(path, config, weights, source)


def pretrain(config: ClipConfig, settings: Settings) -> dict[str, Tensor]:
    """Return pretrained fp32 weights under open_clip's names.

    Raises:
        UserError: The context is too short for the captions.
    """
    torch.manual_seed(settings.seed)
    words = Words(config.context_length)
    model = _initial_model(config, words)
    pairs = Pairs(settings.image_size, np.random.default_rng(settings.seed))
    optimizer = _optimizer(model, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_and_cosine(settings.steps))
    held_out = pairs.draw(HELD_OUT)
    log_every = max(1, settings.steps // LOG_LINES)
    losses = []
    for step in tqdm(range(1, settings.steps + 1), "pretraining", unit="step", disable=None):
        batch = pairs.draw(settings.batch_size)
        captions = pairs.captions(batch)
        loss = contrastive_loss(model, normalise(batch.pictures, config), captions, words)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % log_every == 0 or step == settings.steps:
            right = _zero_shot(model, normalise(held_out.pictures, config), words)
            logger.info(
                "step %d/%d: loss %.3f; recognised %.1f %% of %d held-out pictures among %d names",
                *(step, settings.steps, np.mean(losses)),
                *(100 * np.mean(right.numpy() == held_out.figures), HELD_OUT, len(NAMES)),
            )
            losses = []
    return _grow(model, words, config)


class Words:
    """The tokens in captions, renumbered from 0 in the same order for a small embedding table.

    Attributes:
        used: CLIP's ids of the tokens, ascending.
        length: Number of tokens in the longest caption.
    """

    def __init__(self, context_length: int) -> None:
        """Collect the tokens of all captions.

        Raises:
            UserError: A caption has more than `context_length` tokens.
        """
        texts = tokenize(all_captions(), context_length)
        self.length = max(map(len, texts))
        # 0 is for padding. The end of text keeps the highest number, where open_clip pools.
        self.used = sorted({0, *(token for text in texts for token in text)})
        self._rows = {token: row for row, token in enumerate(self.used)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the renumbered tokens of texts, int64 (texts, length), padded with 0."""
        encoded = (
            [self._rows[token] for token in tokens] for tokens in tokenize(texts, self.length)
        )
        return torch.tensor([row + [0] * (self.length - len(row)) for row in encoded])


def normalise(pictures: np.ndarray, config: ClipConfig) -> Tensor:
    """Convert pictures, uint8 (n, size, size, 3), to normalised fp32 (n, 3, size, size)."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    return (pixels - mean) / std


def contrastive_loss(
    model: nn.Module, images: Tensor, captions: Sequence[str], words: Words
) -> Tensor:
    """Return CLIP's symmetric loss (arXiv 2103.00020, figure 3), adapted to repeated captions.

    The target of an image is its caption among the distinct ones, and the target of a caption is an
    even distribution over its images. `images` are normalised, fp32 (n, 3, size, size).
    """
    different = list(dict.fromkeys(captions))
    target = torch.tensor([different.index(caption) for caption in captions])
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(words.encode(different), normalize=True)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    shares = F.one_hot(target, len(different)).float()
    shares = (shares / shares.sum(0)).T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, shares)) / 2


def _initial_model(config: ClipConfig, words: Words) -> nn.Module:
    small = replace(config, vocab_size=len(words.used), context_length=words.length)
    model = build_open_clip(small).train()
    nn.init.normal_(model.token_embedding.weight, std=EMBEDDING_STD)
    nn.init.constant_(model.logit_scale, log(LOGIT_SCALE))
    return model


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return an AdamW optimizer whose weight decay applies only to matrices, as in CLIP."""

    def decays(name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and "embedding" not in name

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": WEIGHT_DECAY},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, learning_rate, BETAS, fused=True)


def _warm_up_and_cosine(steps: int):
    """Return the factor of the learning rate as a function of the step, counted from 0."""
    warm_up = max(1, round(WARM_UP_SHARE * steps))
    return lambda step: min(1, (step + 1) / warm_up) * (1 + cos(pi * step / steps)) / 2


@torch.no_grad()
def _zero_shot(model: nn.Module, images: Tensor, words: Words) -> Tensor:
    """Return the predicted figure of each image, using one prompt for each name."""
    model.eval()
    prompts = words.encode([FORMS[0].format(name) for name in NAMES])
    cosines = (
        model.encode_image(images, normalize=True) @ model.encode_text(prompts, normalize=True).T
    )
    model.train()
    return cosines.argmax(1)


def _grow(model: nn.Module, words: Words, config: ClipConfig) -> dict[str, Tensor]:
    """Return the weights with the vocabulary and context length of `config`."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    table = torch.randn(config.vocab_size, config.text.width) * EMBEDDING_STD
    positions = torch.randn(config.context_length, config.text.width) * POSITION_STD
    table[words.used] = weights["token_embedding.weight"]
    positions[: words.length] = weights["positional_embedding"]
    return weights | {"token_embedding.weight": table, "positional_embedding": positions}
