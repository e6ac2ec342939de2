"""Pretraining of the small CLIP: its loss, its vocabulary, and that it can be repeated."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from blocklora.backbones.model import build_open_clip
from blocklora.backbones.prompts import tokenize
from blocklora.backbones.shape import TowerConfig
from blocklora.errors import UserError
from blocklora.miniature.captions import NAMES, Pairs, all_captions
from blocklora.miniature.family import clip_config
from blocklora.miniature.pretrain import (
    Words,
    contrastive_loss,
    normalise,
    pretrain,
    pretrain_backbone,
)
from blocklora.miniature.settings import Settings

SETTINGS = Settings(
    seed=1,
    image_size=32,
    patch_size=8,
    embed_dim=16,
    context_length=16,
    vision=TowerConfig(width=32, layers=1, heads=2),
    text=TowerConfig(width=16, layers=1, heads=2),
    steps=3,
    batch_size=8,
    learning_rate=1e-3,
)
CONFIG = clip_config("small", SETTINGS)


@pytest.fixture(scope="module")
def words():
    return Words(CONFIG.context_length)


@pytest.fixture(scope="module")
def pictures():
    return normalise(Pairs(32, np.random.default_rng(0)).draw(6).pictures, CONFIG)


@pytest.fixture(scope="module")
def small(words):
    torch.manual_seed(0)
    return build_open_clip(
        replace(CONFIG, vocab_size=len(words.used), context_length=words.length)
    ).eval()


def test_loss_of_different_captions_is_open_clips(small, words, pictures):
    captions = [f"a photo of a {name}." for name in NAMES[:6]]
    images = small.encode_image(pictures, normalize=True)
    texts = small.encode_text(words.encode(captions), normalize=True)
    expected = open_clip.ClipLoss()(images, texts, small.logit_scale.exp())
    torch.testing.assert_close(contrastive_loss(small, pictures, captions, words), expected)


def test_loss_takes_equal_captions_as_one(small, words, pictures):
    captions = ["the star.", "the moon.", "the star.", "the ring.", "the moon.", "the star."]
    images = small.encode_image(pictures, normalize=True).double()
    texts = small.encode_text(words.encode(captions), normalize=True).double()
    scores = (small.logit_scale.exp() * images @ texts.T).exp()
    different = [0, 1, 3]
    to_text = torch.stack([scores[i, i] / scores[i, different].sum() for i in range(6)])
    to_image = torch.stack(
        [
            torch.stack([scores[i, c] / scores[:, c].sum() for i in range(6)
                         if captions[i] == captions[c]]).log().mean()
            for c in different
        ]
    )  # fmt: skip
    expected = -(to_text.log().mean() + to_image.mean()) / 2
    found = contrastive_loss(small, pictures, captions, words).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_full_vocabulary_encodes_captions_as_the_small_one_did(words):
    captions = all_captions()[:: len(all_captions()) // 40]
    model = build_open_clip(CONFIG).eval()
    model.load_state_dict(pretrain(CONFIG, SETTINGS))
    renumbered = build_open_clip(
        replace(CONFIG, vocab_size=len(words.used), context_length=words.length)
    ).eval()
    weights = model.state_dict()
    weights["token_embedding.weight"] = weights["token_embedding.weight"][words.used]
    weights["positional_embedding"] = weights["positional_embedding"][: words.length]
    renumbered.load_state_dict(weights, strict=False)
    full = torch.zeros(len(captions), CONFIG.context_length, dtype=torch.int64)
    for row, tokens in zip(full, tokenize(captions, CONFIG.context_length), strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(full), renumbered.encode_text(words.encode(captions))
        )


def test_equal_settings_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        pretrain_backbone("small", SETTINGS, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_context_too_short_for_the_captions_is_refused():
    with pytest.raises(UserError, match="token"):
        Words(4)
