"""Drawing training and validation images for few-shot learning, exactly as CLIP-LoRA does.

The order of the draws follows MaxZanella/CLIP-LoRA@358f0d7: `generate_fewshot_dataset` in
`datasets/utils.py`, `datasets/imagenet.py` and the dataset classes beside them. Python's `random`
module is part of the protocol. Its `sample` returns the same values on every CPython since 3.6,
whereas another generator would draw other images.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping

from blocklora.data.manifest import LabelledImage
from blocklora.errors import UserError

Classes = Mapping[int, list[LabelledImage]]  # by label, in order of first appearance
VALIDATION_SHOTS = 4  # at most; CLIP-LoRA draws min(shots, 4) validation images per class


def draw_shots(images: Iterable[LabelledImage], shots: int, seed: int) -> list[LabelledImage]:
    """Return the few-shot validation images followed by the training images.

    Both are drawn from one new generator with this seed, the validation images first. There is one
    draw per class, in the order in which classes first appear in the list. It is without
    replacement, unless a class has too few images. A dataset without validation images is treated
    like ImageNet in CLIP-LoRA: there is one draw per class in ascending label order, whose first
    `shots` images are for training and the others for validation. The `split` of a returned image
    is "train" or "val" accordingly.

    Raises:
        UserError: `shots` is below 1, there are no training images, or a class of a dataset
            without validation images is too small.
    """
    if shots < 1:
        raise UserError(f"shots must be at least 1, not {shots}")
    train, val = defaultdict(list), defaultdict(list)
    for image in images:
        if image.split != "test":
            (train if image.split == "train" else val)[image.label].append(image)
    if not train:
        raise UserError("no training images to draw shots from; see the dataset's manifest")
    generator = random.Random(seed)
    if not val:
        return _draw_jointly(train, shots, generator)
    drawn = _draw(val, min(shots, VALIDATION_SHOTS), generator)
    return drawn + _draw(train, shots, generator)


def _draw(classes: Classes, count: int, generator: random.Random) -> list[LabelledImage]:
    drawn = []
    for items in classes.values():
        enough = len(items) >= count
        drawn += generator.sample(items, count) if enough else generator.choices(items, k=count)
    return drawn


def _draw_jointly(classes: Classes, shots: int, generator: random.Random) -> list[LabelledImage]:
    val_shots = min(shots, VALIDATION_SHOTS)
    train, val = [], []
    for label, items in sorted(classes.items()):
        if len(items) < shots + val_shots:
            raise UserError(
                f"class {label} ({items[0].classname!r}) has {len(items)} training images, but "
                f"{shots} shots need {shots + val_shots} ({val_shots} of them for validation) in "
                "a dataset without validation images: ask for fewer shots or add a val split"
            )
        drawn = generator.sample(items, shots + val_shots)
        train += drawn[:shots]
        val += [image._replace(split="val") for image in drawn[shots:]]
    return val + train
