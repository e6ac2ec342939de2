"""The use of trained adapters: classifying new images, and exporting plain weights."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blocklora.adapters.merge import merge
from blocklora.adapters.store import load_adapter, read_adapter_record
from blocklora.backbones.model import Backbone
from blocklora.backbones.prompts import prompt_tokens
from blocklora.backbones.weights import load_backbone, save_backbone
from blocklora.data.images import read_image
from blocklora.data.preprocess import evaluation_transform
from blocklora.engine.classifier import Classifier
from blocklora.errors import UserError

# The scale in the paper's protocol, for adapters of older versions, which do not record theirs.
PROTOCOL_LOGIT_SCALE = 100.0

logger = logging.getLogger(__name__)


def classify(
    adapter_file: Path, backbone_file: Path, images: Sequence[Path], device: str
) -> Iterator[tuple[Path, str, float]]:
    """Yield (file, class name, probability) for the most likely class of each image.

    Raises:
        UserError: A file is missing or unreadable, or the adapter is for another backbone or was
            not written by a run.
    """
    backbone, record = _merged(adapter_file, backbone_file, "classnames", "prompt")
    names, scale = record["classnames"], record.get("logit_scale")
    if scale is None:
        logger.warning(
            "%s: does not say its logit_scale; the probabilities are right if it is %g",
            adapter_file,
            PROTOCOL_LOGIT_SCALE,
        )
        scale = PROTOCOL_LOGIT_SCALE
    size = backbone.config.image_size
    pixels = np.stack([evaluation_transform(read_image(path), size) for path in images])
    tokens = prompt_tokens(names, record["prompt"], backbone.config.context_length)
    labels, probabilities = Classifier(backbone, tokens, scale, device).predict(pixels)
    for path, label, probability in zip(
        images, labels.tolist(), probabilities.tolist(), strict=True
    ):
        yield path, names[label], probability


def export_merged(adapter_file: Path, backbone_file: Path, output: Path) -> None:
    """Write the backbone with the adapter folded in, for software that has no adapters.

    Raises:
        UserError: A file is missing, unreadable or cannot be written, or the adapter is for another
            backbone or was not written by a run.
    """
    needed = ("method", "dataset", "shots", "seed")
    backbone, record = _merged(adapter_file, backbone_file, *needed)
    source = "{backbone} with {method} on {dataset}, {shots} shots, seed {seed}".format(**record)
    save_backbone(output, backbone.config, backbone.weights, source)


def _merged(
    adapter_file: Path, backbone_file: Path, *needed: str
) -> tuple[Backbone, dict[str, Any]]:
    """Return the backbone with the adapter folded in, and the adapter's record."""
    backbone = load_backbone(backbone_file)
    adapter = load_adapter(adapter_file, backbone.sha256)
    record = read_adapter_record(adapter_file)
    if missing := [name for name in needed if name not in record]:
        raise UserError(
            f"{adapter_file}: this adapter does not say its {', '.join(missing)}, so it was not "
            "written by `blocklora fit`; use the adapter of a run"
        )
    return replace(backbone, weights=merge(backbone.weights, adapter)), record
