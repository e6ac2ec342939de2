"""A classification task as a run sees it: weights, classes, prompts and images, from files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from blocklora.backbones.model import Backbone
from blocklora.backbones.prompts import class_prompts, tokenize
from blocklora.backbones.weights import load_backbone
from blocklora.data.manifest import classnames, iterate_manifest, read_shots
from blocklora.data.pixels import ShotImages, open_shot_images, open_test_pixels
from blocklora.data.preprocess import evaluation_transform
from blocklora.errors import UserError
from blocklora.study.model import Study


@dataclass(frozen=True)
class Task:
    """A classification task as every run on a dataset sees it.

    Attributes:
        backbone: CLIP weights.
        names: class names by label.
        prompts: token ids of each class prompt.
        pixels: preprocessed test images, uint8 (images, size, size, 3).
        labels: of the test images, int64 (images,).
    """

    backbone: Backbone
    names: list[str]
    prompts: list[list[int]]
    pixels: np.ndarray
    labels: np.ndarray


def load_task(
    study: Study, backbone_file: Path, manifest: Path, test_pixels: Path, workers: int
) -> Task:
    """Read what all runs of a backbone and dataset share.

    Test images that are too many for a store are decoded by `workers` threads.

    Raises:
        UserError: a file is missing or unreadable, or the pixels are not those of the manifest.
    """
    backbone = load_backbone(backbone_file)
    images = list(iterate_manifest(manifest))
    names = classnames(images)
    labels = np.array([image.label for image in images if image.split == "test"])
    pixels = open_test_pixels(test_pixels, workers)
    size = backbone.config.image_size
    if pixels.shape != (len(labels), size, size, 3):
        raise UserError(
            f"{test_pixels}: holds images of shape {tuple(pixels.shape)}, but {manifest} lists "
            f"{len(labels)} test images and the backbone sees {size} × {size} pixels; delete the "
            "file and run again"
        )
    prompts = tokenize(class_prompts(names, study.recipe.prompt), backbone.config.context_length)
    return Task(backbone, names, prompts, pixels, labels)


def open_shots(shots_list: Path, shots_pixels: Path, task: Task) -> ShotImages:
    """Return the training images of a run, checked against its shots list.

    Raises:
        UserError: the store holds other images than the list, or a class has none.
    """
    images = open_shot_images(shots_pixels)
    listed = read_shots(shots_list, "train")
    if [image.path for image in listed] != images.paths:
        raise UserError(
            f"{shots_pixels}: holds other images than {shots_list} lists; delete it and run again"
        )
    missing = sorted(set(range(len(task.names))) - set(images.labels.tolist()))
    if missing:
        raise UserError(f"{shots_list}: the class {task.names[missing[0]]!r} has no training image")
    return images


def evaluation_batches(images: ShotImages, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the training images, not augmented but preprocessed like test images."""
    for start in range(0, len(images), 256):
        chosen = range(start, min(start + 256, len(images)))
        pixels = [evaluation_transform(Image.fromarray(images.image(i)), size) for i in chosen]
        yield np.stack(pixels), images.labels[chosen.start : chosen.stop]
