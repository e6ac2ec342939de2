"""Files that are cut short, changed or gone: a message that names them, and a way out."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from blocklora.files import read_json
from blocklora.runs.predictions import read_test_facts
from blocklora.study.digests import verification_digest
from blocklora.study.study import load_study
from tests.faults.pipeline import (
    CACHE,
    FIT_FILES,
    assert_equal_results,
    content,
    find,
    forget,
    make_backbone,
    remove_outputs,
    stages,
)

SHOTS_LIST = "results/shots/own/2shot/seed1.csv"
SHOTS_PIXELS = "results/pixels/own/2shot/seed1.npz"
TEST_PIXELS = "results/pixels/own/test-32px.npy"
BACKBONE = "results/backbones/mini-clip.safetensors"
MANIFEST = "results/data/own/manifest.csv"
SOURCE = "results/data/own/source.json"
RUN = "results/runs/mini-clip/own/block_lora/2shot/seed1"


def assert_refused(outcome, stage, named, folder):
    assert outcome.status == 1, outcome.text
    assert f"blocklora {stage.name}: error: " in outcome.text
    assert named in outcome.text
    assert "Traceback" not in outcome.text
    said = outcome.text.splitlines()
    assert len(said) == len(set(said))
    # The other seed of a job that fits two is finished all the same.
    left = [output for output in stage.outputs if (folder / output).exists()]
    assert [output for output in left if "seed2" not in output] == []


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize(
    ("file", "reader", "output"),
    [
        (SOURCE, "make-manifest", ""),
        (MANIFEST, "verify-data", ""),
        (MANIFEST, "shots", ""),
        (SHOTS_LIST, "decode-images", SHOTS_PIXELS),
        (TEST_PIXELS, "test", ""),
        (BACKBONE, "fit", ""),
        (SHOTS_PIXELS, "fit", ""),
        (f"{RUN}/fit.json", "aggregate", ""),
        (f"{RUN}/tests/own/test.safetensors", "aggregate", ""),
        (f"{RUN}/tests/own/train.safetensors", "aggregate", ""),
    ],
)
def test_a_file_cut_short_is_named_and_made_again(
    runner, study, finished, copied, file, reader, output, share
):
    stage = find(study, reader, output)
    remove_outputs(copied, stage)
    data = (copied / file).read_bytes()
    (copied / file).write_bytes(data[: int(share * len(data))])
    assert_refused(runner(copied, stage.arguments), stage, file, copied)

    (copied / file).unlink()
    make_backbone(copied)
    for maker in [s for s in stages(study) if file in s.outputs]:
        assert runner(copied, maker.arguments).status == 0
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 0, outcome.text
    assert_equal_results(copied, finished[0])


@pytest.mark.parametrize("name", [name for name in FIT_FILES if name != "history.csv"])
def test_a_result_cut_short_is_made_again(runner, study, finished, copied, name):
    file = copied / RUN / name
    file.write_bytes(file.read_bytes()[:40])
    assert runner(copied, find(study, "fit", RUN).arguments).status == 0
    assert_equal_results(copied, finished[0])


@pytest.mark.parametrize(
    ("kind", "name", "fits"),
    [
        ("fits", "adapter.safetensors", 1),
        ("fits", "entry.json", 1),
        ("tests", "test.safetensors", 0),
    ],
)
def test_an_entry_cut_short_is_named_and_made_again(
    runner, study, finished, copied, kind, name, fits
):
    stage = find(study, "fit", RUN)
    provenance = read_json(copied / RUN / "fit.json")["provenance"]
    test = read_test_facts(copied / RUN / "tests/own/test.safetensors")
    entry = CACHE / kind / {"fits": provenance, "tests": test}[kind]["key"]
    file = copied / entry / name
    file.write_bytes(file.read_bytes()[:40])
    remove_outputs(copied, stage)
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 0, outcome.text
    assert re.search(f"{entry / name}: .*; it is made again", outcome.text)
    assert outcome.text.count("fitted in") == fits
    assert_equal_results(copied, finished[0])

    remove_outputs(copied, stage)
    outcome = runner(copied, stage.arguments)
    assert "made again" not in outcome.text
    assert "fitted in" not in outcome.text
    assert_equal_results(copied, finished[0])


@pytest.fixture
def own_images(study, tmp_path):
    """The folder of the study's images, put back as it was afterwards."""
    (folder,) = (path for path in study.parent.iterdir() if path.is_dir())
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)


@pytest.mark.parametrize(
    ("reader", "damage"),
    [
        ("decode-images", "cut short"),  # verify-data reads the header alone
        ("decode-images", "no image"),
        ("decode-images", "gone"),
        ("verify-data", "no image"),
        ("verify-data", "gone"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(runner, study, copied, own_images, reader, damage):
    stage = find(study, reader)
    remove_outputs(copied, stage)
    forget(copied, "pixels", "verifications")
    image = own_images / "test/red cat" / "3 $(touch pwned)\n'\".png"
    if damage == "cut short":
        image.write_bytes(image.read_bytes()[:900])
    elif damage == "no image":
        image.write_text("a web page about an error")
    else:
        image.unlink()
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 1
    assert "test/red cat/3 $(touch pwned)" in outcome.text
    assert "Traceback" not in outcome.text


def test_an_image_that_changes_is_verified_again(study, own_images):
    """Its name, its place and the list stay what they were."""
    before = verification_digest(load_study(study), "own")
    next(own_images.rglob("*.png")).write_text("a web page about an error")
    assert verification_digest(load_study(study), "own") != before


def test_a_wrong_label_in_the_manifest_is_found(runner, study, finished, copied):
    stage = find(study, "verify-data")
    remove_outputs(copied, stage)
    file = copied / MANIFEST
    text = file.read_text()
    file.unlink()  # it is a link to an entry, which nobody writes to
    file.write_text(text.replace(",1,", ",2,", 1))
    outcome = runner(copied, stage.arguments)
    assert outcome.status == 1
    assert "[manifest] rows that are not what the split file or the folders say" in outcome.text

    assert runner(copied, find(study, "make-manifest").arguments).status == 0
    assert runner(copied, stage.arguments).status == 0
    assert_equal_results(copied, finished[0])


@pytest.mark.parametrize("reader", ["fetch-dataset", "make-manifest", "decode-images"])
def test_a_dataset_that_disappears_is_named_and_may_come_back(
    runner, study, finished, copied, own_images, reader
):
    stage = find(study, reader)
    remove_outputs(copied, stage)
    away = own_images.with_name("away")
    own_images.rename(away)
    outcome = runner(copied, stage.arguments)
    away.rename(own_images)
    assert_refused(outcome, stage, str(own_images), copied)
    assert runner(copied, stage.arguments).status == 0
    assert_equal_results(copied, finished[0])


def test_pixels_of_other_images_are_refused(runner, study, copied):
    stage = find(study, "test")
    remove_outputs(copied, stage)
    np.save(copied / TEST_PIXELS, np.zeros((3, 32, 32, 3), np.uint8))
    assert_refused(runner(copied, stage.arguments), stage, TEST_PIXELS, copied)


def test_the_undisturbed_study_ran_no_command_hidden_in_a_name(study, finished):
    assert content(finished[0] / MANIFEST).count(b"$(touch pwned)") > 40
    for folder in (finished[0], study.parent):
        assert not list(folder.rglob("pwned"))


def test_an_image_is_the_same_whatever_its_name(study, finished):
    pixels = np.load(finished[0] / TEST_PIXELS)
    (folder,) = (path for path in study.parent.iterdir() if path.is_dir())
    first = sorted((folder / "test").iterdir())[0]
    image = Image.open(sorted(first.iterdir())[0]).convert("RGB")
    # 48 × 40 becomes 38 × 32, of which the middle 32 × 32 are kept.
    resized = np.asarray(image.resize((38, 32), Image.Resampling.BICUBIC))[:, 3:35]
    assert (pixels[0] == resized).all()
