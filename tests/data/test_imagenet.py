"""ImageNet's own way: class folders, the flat validation folder, and the tar files."""

import io
import shutil

import numpy as np
import pytest
import scipy.io
import yaml
from dataset_archives import pack, picture

from blocklora.data.fetch import fetch_published
from blocklora.data.imagenet import DEVKIT, read_classes, scan_imagenet
from blocklora.data.layouts import list_images
from blocklora.data.registry import PACKAGED, load_registry
from blocklora.data.sampling import draw_shots
from blocklora.errors import UserError

CLASSES = {"n01": "tench", "n02": "great white shark", "n03": "missile"}
# Which class each validation image has, by its number; the devkit's ids are in another order.
TRUTH = ["n03", "n01", "n02", "n02", "n01", "n03"]
IDS = {"n02": 1, "n03": 2, "n01": 3, "n99": 4}  # n99 is not a leaf, as in the real devkit


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
    return {w: {f"{w}_{i}.JPEG": picture(f"{w} {i}") for i in (10, 9, 100)} for w in CLASSES}


def validation_images():
    return {validation_name(i + 1): picture(f"val {i}") for i in range(len(TRUTH))}


@pytest.fixture
def imagenet(tmp_path):
    """Return a definition of ImageNet with three classes and no checksums."""
    entry = yaml.safe_load((PACKAGED / "paper.yaml").read_text())["imagenet"]
    entry |= {"classes": 3, "images": {"train": 9, "val": 0, "test": 6}, "same_names": []}
    for archive in entry["downloads"][0]["archives"]:
        archive |= {"bytes": None, "checksum": None}
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "x.yaml").write_text(yaml.safe_dump({"imagenet": entry}))
    lines = "".join(f"{wnid} {name}\n" for wnid, name in CLASSES.items())
    (folder / "imagenet_classes.txt").write_text(f"# a comment\n{lines}")
    return load_registry(folder)["imagenet"]


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def write_tars(folder):
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
    for wnid, images in train_images().items():
        write(root / "train" / wnid, images)
    for wnid, (name, content) in zip(TRUTH, validation_images().items(), strict=True):
        write(root / "val" / ("." if flat else wnid), {name: content})


def images_of(source, dataset):
    return list(list_images(source, {"imagenet": dataset}))


def reference(prefix_folders=True):
    """Return what torchvision's ImageFolder order means for these images."""
    train = [
        (f"train/{w}/{name}", label, CLASSES[w], "train")
        for label, w in enumerate(CLASSES)
        for name in sorted(train_images()[w])
    ]
    test = [
        (f"val/{w}/{n}" if prefix_folders else f"val/{n}", label, CLASSES[w], "test")
        for label, w in enumerate(CLASSES)
        for n in [validation_name(i + 1) for i, truth in enumerate(TRUTH) if truth == w]
    ]
    return train + test


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("images", ["images", "."])
def test_coop_and_cliplora_trees_are_read_as_they_are(imagenet, tmp_path, images, flat):
    folder = tmp_path / "data" / "imagenet"
    write_tree(folder / images, flat)
    if flat:
        write(folder, {f"{DEVKIT}.tar.gz": pack("x.tar.gz", devkit_files())})
    source = fetch_published(imagenet, tmp_path / "data", None)
    assert source.origin == "existing"
    assert (source.split_file is not None) == flat
    assert images_of(source, imagenet) == reference(prefix_folders=not flat)


@pytest.mark.parametrize("place", ["archives", "imagenet"])
def test_the_official_tar_files_are_unpacked(imagenet, tmp_path, place):
    write_tars(tmp_path / "data" / place)
    source = fetch_published(imagenet, tmp_path / "data", None)
    assert source.origin == "downloaded"
    assert [file["name"] for file in source.files][:3] == [
        "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", f"{DEVKIT}.tar.gz",
    ]  # fmt: skip
    assert images_of(source, imagenet) == reference(prefix_folders=False)
    assert (tmp_path / "data" / place / "ILSVRC2012_img_val.tar").exists()


def test_an_unpacked_devkit_serves_as_well(imagenet, tmp_path):
    folder = tmp_path / "data" / "imagenet"
    write_tree(folder, flat=True)
    write(folder, devkit_files())
    source = fetch_published(imagenet, tmp_path / "data", None)
    assert images_of(source, imagenet) == reference(prefix_folders=False)
    assert source.files == ()


def test_few_shots_are_drawn_from_the_training_folder(imagenet, tmp_path):
    write_tree(tmp_path / "data" / "imagenet", flat=False)
    drawn = draw_shots(
        images_of(fetch_published(imagenet, tmp_path / "data", None), imagenet), 1, 1
    )
    assert len(drawn) == 6
    assert all(image.path.startswith("train/") for image in drawn)
    assert len({image.path for image in drawn}) == 6


def test_without_archives_the_message_says_what_to_get_where(imagenet, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch_published(imagenet, tmp_path, None)
    text = str(caught.value)
    for part in ("image-net.org", "terms", "ILSVRC2012_img_train.tar", str(tmp_path / "archives")):
        assert part in text


def test_a_flat_validation_folder_needs_the_devkit(imagenet, tmp_path):
    write_tree(tmp_path / "imagenet", flat=True)
    with pytest.raises(UserError, match=rf"the images lie flat, so {DEVKIT}\.tar\.gz is needed"):
        fetch_published(imagenet, tmp_path, None)


@pytest.mark.parametrize("content", [b"", b"junk", pack("x.tar.gz", {"other": b""})])
def test_a_damaged_devkit_is_named(tmp_path, content):
    write_tree(tmp_path, flat=True)
    write(tmp_path, {"devkit.tar.gz": content})
    with pytest.raises(UserError, match=r"devkit\.tar\.gz: not a readable devkit"):
        list(scan_imagenet(tmp_path, CLASSES, tmp_path / "devkit.tar.gz"))


def test_missing_or_foreign_class_folders_are_named(tmp_path):
    write_tree(tmp_path, flat=False)
    (tmp_path / "train" / "tmp").mkdir()
    with pytest.raises(UserError, match=r"train: 4 class folders instead of 3.*: tmp\."):
        list(scan_imagenet(tmp_path, CLASSES, None))
    (tmp_path / "train" / "tmp").rmdir()
    shutil.rmtree(tmp_path / "val" / "n02")
    with pytest.raises(UserError, match=r"val: 2 class folders instead of 3.*: n02\."):
        list(scan_imagenet(tmp_path, CLASSES, None))


def test_a_stray_validation_image_is_named(tmp_path):
    write_tree(tmp_path, flat=True)
    write(tmp_path, devkit_files() | {"val/holiday.jpg": b""})
    with pytest.raises(UserError, match=r"holiday\.jpg: not a validation image"):
        list(scan_imagenet(tmp_path, CLASSES, tmp_path / DEVKIT))


def test_the_packaged_list_has_a_thousand_classes():
    assert len(read_classes(PACKAGED / "imagenet_classes.txt")) == 1000
