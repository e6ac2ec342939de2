"""Reading the task, the training images and the images of tests of a run from their files."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blocklora.backbones.prompts import prompt_tokens
from blocklora.backbones.weights import load_backbone
from blocklora.data.manifest import classnames, iterate_manifest, read_shots
from blocklora.data.pixels import (
    LazyPixels,
    open_shot_images,
    open_test_pixels,
    training_pixels,
)
from blocklora.errors import UserError
from blocklora.methods.base import Shots, Task


class TestImages(NamedTuple):
    """Preprocessed images of a test, uint8 (images, size, size, 3), and labels, int64 (images,).

    The images are a memory map, or `LazyPixels`, which prepares them when they are needed.
    """

    __test__ = False  # keeps pytest from collecting it

    pixels: np.ndarray | LazyPixels
    labels: np.ndarray


def load_task(
    backbone_file: Path, manifest: Path, test_pixels: Path, workers: int
) -> tuple[Task, TestImages]:
    """Read the task and the test images that all runs of a backbone and a dataset share.

    If there were too many test images to store their pixels, `workers` threads decode them when
    they are needed.

    Raises:
        UserError: A file is missing or unreadable, or the pixels do not belong to the manifest.
    """
    backbone = load_backbone(backbone_file)
    images = list(iterate_manifest(manifest))
    names = classnames(images)
    labels = np.array([image.label for image in images if image.split == "test"])
    pixels = open_test_pixels(test_pixels, workers)
    size = backbone.config.image_size
    if pixels.shape != (len(labels), size, size, 3):
        raise UserError(
            f"{test_pixels}: the images in this file have shape {tuple(pixels.shape)}, but "
            f"{manifest} lists {len(labels)} test images and the backbone takes {size} × {size} "
            "pixels; delete the file and run again"
        )
    tokenize = partial(prompt_tokens, names, context_length=backbone.config.context_length)
    return Task(backbone, names, tokenize), TestImages(pixels, labels)


def open_shots(
    shots_list: Path, shots_pixels: Path, task: Task, per_class: int, seed: int
) -> Shots:
    """Return the training images of a run after checking them against its shots list.

    Raises:
        UserError: A file is missing or unreadable, the store has other images than the list, or a
            class has no image.
    """
    images = open_shot_images(shots_pixels)
    listed = read_shots(shots_list, "train")
    if [image.path for image in listed] != images.paths:
        raise UserError(
            f"{shots_pixels}: this file holds other images than {shots_list} lists; delete it and "
            "run again"
        )
    missing = sorted(set(range(len(task.names))) - set(images.labels.tolist()))
    if missing:
        raise UserError(f"{shots_list}: the class {task.names[missing[0]]!r} has no training image")
    return Shots(images, images.labels, per_class, seed)


def tested_shots(shots: Shots, task: Task, workers: int) -> TestImages:
    """Return training images as the images of a test, which `workers` threads prepare.

    They are not augmented, but preprocessed like test images.
    """
    size = task.backbone.config.image_size
    return TestImages(training_pixels(shots.images, size, workers), shots.labels)
