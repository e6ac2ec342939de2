"""A small ImageNet: three classes, in the official tar files or in class folders."""

import io

import numpy as np
import scipy.io
import yaml

from blocklora.data.imagenet import DEVKIT
from blocklora.data.registry import PACKAGED
from tests.data.dataset_archives import pack, picture

CLASSES = {"n01": "tench", "n02": "great white shark", "n03": "missile"}
# Which class each validation image has, by its number; the devkit's ids are in another order.
TRUTH = ["n03", "n01", "n02", "n02", "n01", "n03"]
IDS = {"n02": 1, "n03": 2, "n01": 3, "n99": 4}  # n99 is not a leaf, as in the real devkit


def write_registry(folder):
    """Write a definition of ImageNet with these classes and no checksums into `folder`."""
    entry = yaml.safe_load((PACKAGED / "paper.yaml").read_text(encoding="utf-8"))["imagenet"]
    entry |= {"classes": 3, "images": {"train": 12, "val": 0, "test": 6}, "same_names": []}
    for archive in entry["downloads"][0]["archives"]:
        archive |= {"bytes": None, "checksum": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "imagenet.yaml").write_text(yaml.safe_dump({"imagenet": entry}), encoding="utf-8")
    lines = "".join(f"{wnid} {name}\n" for wnid, name in CLASSES.items())
    (folder / "imagenet_classes.txt").write_text(f"# a comment\n{lines}", encoding="utf-8")


def validation_name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def devkit_files():
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    synsets = np.array([(number, wnid, "x", 0) for wnid, number in IDS.items()], dtype=kind)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": synsets})
    truth = "".join(f"{IDS[wnid]}\n" for wnid in TRUTH)
    return {
        f"{DEVKIT}/data/meta.mat": stream.getvalue(),
        f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        f"{DEVKIT}/readme.txt": b"",
    }


def train_images():
    numbers = (10, 9, 100, 1)
    return {w: {f"{w}_{i}.JPEG": picture(f"{w} {i}") for i in numbers} for w in CLASSES}


def validation_images():
    return {validation_name(i + 1): picture(f"val {i}") for i in range(len(TRUTH))}


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def write_tars(folder):
    """Write the three official files into `folder`."""
    tars = {f"{wnid}.tar": pack("x.tar", images) for wnid, images in train_images().items()}
    write(
        folder,
        {
            "ILSVRC2012_img_train.tar": pack("x.tar", tars),
            "ILSVRC2012_img_val.tar": pack("x.tar", validation_images()),
            f"{DEVKIT}.tar.gz": pack("x.tar.gz", devkit_files()),
        },
    )


def write_tree(root, flat):
    """Write the unpacked images below `root`, those of validation in class folders or not."""
    for wnid, images in train_images().items():
        write(root / "train" / wnid, images)
    for wnid, (name, content) in zip(TRUTH, validation_images().items(), strict=True):
        write(root / "val" / ("." if flat else wnid), {name: content})
