"""`verify-data`: what it finds, what stops and what only warns."""

import json
import os
from types import SimpleNamespace

import pytest

from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.data.source import Source, write_source
from blocklora.data.verify import verify
from tests.data.dataset_archives import picture

NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def images(tmp_path):
    """Return a faultless dataset of 18 images with its files written."""
    found = [
        LabelledImage(f"{split}/{name}/{i} é\n.jpg", label, name, split)
        for split in ("train", "val", "test")
        for label, name in enumerate(NAMES)
        for i in range(2)
    ]
    for image in found:
        path = tmp_path / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image.path))
    return found


def check(tmp_path, images, listed=None, dataset=None, workers=2):
    source = Source("mine", str(tmp_path), None, "user")
    return verify(source, images, images if listed is None else listed, dataset, workers)


def codes(report, level="error"):
    return [finding.code for finding in report.findings if finding.level == level]


def expectation(**changes):
    numbers = {"classes": 3, "train": 6, "val": 6, "test": 6} | changes
    return SimpleNamespace(classes=numbers.pop("classes"), images=numbers, same_names=())


def test_a_faultless_dataset_passes(tmp_path, images):
    report = check(tmp_path, images, dataset=expectation())
    assert report.passed
    assert report.findings == ()
    assert report.text() == "mine: 3 classes, images: 6 train, 6 val, 6 test\n  passed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"classes": 4}, "classes: 3 instead of 4"), ({"test": 7}, "test: 6 instead of 7")],
)
def test_other_counts_than_expected_stop(tmp_path, images, changes, message):
    report = check(tmp_path, images, dataset=expectation(**changes))
    assert codes(report) == ["counts"]
    assert report.findings[0].message == message


def test_missing_empty_and_unreadable_files_stop_and_are_listed(tmp_path, images):
    (tmp_path / images[0].path).unlink()
    (tmp_path / images[1].path).write_bytes(b"")
    (tmp_path / images[7].path).write_bytes(b"GIF? no")
    (tmp_path / images[8].path).write_bytes(b"also no image")
    report = check(tmp_path, images)
    assert not report.passed
    found = {finding.code: (finding.count, finding.examples) for finding in report.findings}
    assert found == {
        "missing": (1, (repr(images[0].path),)),
        "empty": (1, (repr(images[1].path),)),
        "unreadable": (2, (repr(images[7].path), repr(images[8].path))),
    }


def test_many_findings_are_counted_and_some_shown(tmp_path, images):
    for image in images:
        (tmp_path / image.path).unlink()
    report = check(tmp_path, images)
    assert "... and 13 more" in report.text()


def test_an_image_in_two_splits_stops_and_twice_in_one_warns(tmp_path, images):
    shared = images[0]._replace(split="test")
    report = check(tmp_path, [*images, shared])
    assert codes(report) == ["shared"]
    assert report.findings[0].examples == (repr(shared.path),)
    report = check(tmp_path, [*images, images[-1]])
    assert report.passed
    assert codes(report, "warning") == ["repeated"]


def test_equal_bytes_in_train_and_test_warn(tmp_path, images):
    (tmp_path / images[-1].path).write_bytes((tmp_path / images[0].path).read_bytes())
    (tmp_path / images[-2].path).write_bytes((tmp_path / images[-3].path).read_bytes())
    report = check(tmp_path, images)
    assert report.passed
    (finding,) = report.findings
    assert finding.code == "same-content"
    assert finding.examples == (repr(f"{images[-1].path} = {images[0].path}"),)


def test_files_that_differ_only_in_the_middle_are_not_equal(tmp_path, images):
    content = bytearray(picture("x") + os.urandom(20_000))
    (tmp_path / images[0].path).write_bytes(content)
    content[10_000] ^= 1
    (tmp_path / images[-1].path).write_bytes(content)
    assert check(tmp_path, images).findings == ()


def test_a_class_without_training_images_stops_and_without_test_images_warns(tmp_path, images):
    report = check(tmp_path, [i for i in images if (i.split, i.label) != ("train", 1)])
    assert codes(report) == ["empty-class"]
    report = check(tmp_path, [i for i in images if (i.split, i.label) != ("test", 1)])
    assert report.passed
    assert codes(report, "warning") == ["untested"]


def test_equal_class_names_warn_unless_they_are_known(tmp_path, images):
    same = [i._replace(classname="ant") if i.label == 2 else i for i in images]
    report = check(tmp_path, same)
    assert codes(report, "warning") == ["same-name"]
    known = expectation()
    known.same_names = ((0, 2),)
    assert check(tmp_path, same, dataset=known).findings == ()


@pytest.mark.parametrize("changed", [{"label": 7}, {"classname": "dog"}])
def test_labels_that_make_no_sense_stop(tmp_path, images, changed):
    wrong = [images[0]._replace(**changed), *images[1:]]
    assert codes(check(tmp_path, wrong)) == ["labels"]


def test_a_manifest_that_is_not_what_the_split_says_stops(tmp_path, images):
    wrong = [*images[:-1], images[-1]._replace(label=0, classname="ant")]
    assert codes(check(tmp_path, wrong, listed=images)) == ["manifest"]
    assert codes(check(tmp_path, images[:-1], listed=images)) == ["manifest"]


def test_the_command_writes_the_report_prints_it_and_stops(tmp_path, images, capsys):
    listed = [i for i in images if i.split != "val"]
    root = tmp_path / "root"
    for image in listed:
        path = root / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(image.path))
    write_source(tmp_path / "s.json", Source("mine", str(root), None, "user"))
    write_manifest(tmp_path / "m.csv", listed)
    arguments = ["verify-data", "--source", tmp_path / "s.json", "--manifest", tmp_path / "m.csv"]
    arguments += ["--output", tmp_path / "v.json"]
    assert main([str(argument) for argument in arguments]) == 0
    assert capsys.readouterr().out.endswith("  passed\n")
    assert json.loads((tmp_path / "v.json").read_text())["passed"]

    (root / listed[0].path).write_bytes(b"")
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert "error [empty]" in printed.out
    assert "mine cannot be used because of the faults above" in printed.err
    report = json.loads((tmp_path / "v.json").read_text())
    assert not report["passed"]
    assert report["findings"][0] == {
        "level": "error",
        "code": "empty",
        "message": "empty image files",
        "count": 1,
        "examples": [repr(listed[0].path)],
    }
