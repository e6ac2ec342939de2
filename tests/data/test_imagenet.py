"""ImageNet's own way: class folders, the flat validation folder, and the tar files."""

import shutil

import pytest

from blocklora.data.fetch import fetch_published
from blocklora.data.imagenet import DEVKIT, read_classes, scan_imagenet
from blocklora.data.layouts import list_images
from blocklora.data.registry import PACKAGED, load_registry
from blocklora.data.sampling import draw_shots
from blocklora.errors import UserError
from tests.data.dataset_archives import pack
from tests.data.small_imagenet import (
    CLASSES,
    TRUTH,
    devkit_files,
    train_images,
    validation_name,
    write,
    write_registry,
    write_tars,
    write_tree,
)


@pytest.fixture
def imagenet(tmp_path):
    """Return the definition of the small ImageNet."""
    write_registry(tmp_path / "registry")
    return load_registry(tmp_path / "registry")["imagenet"]


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


def test_missing_archives_are_named_with_their_source(imagenet, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch_published(imagenet, tmp_path, None)
    text = str(caught.value)
    for part in ("image-net.org", "terms", "ILSVRC2012_img_train.tar", str(tmp_path / "archives")):
        assert part in text


def test_a_flat_validation_folder_needs_the_devkit(imagenet, tmp_path):
    write_tree(tmp_path / "imagenet", flat=True)
    with pytest.raises(UserError, match=rf"not in class folders, so {DEVKIT}\.tar\.gz is needed"):
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
