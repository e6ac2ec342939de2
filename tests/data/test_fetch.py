"""Every dataset's whole path: download, verify, unpack, manifest, shots, pixels."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import yaml

from blocklora.cli import main
from blocklora.data.download import Downloader
from blocklora.data.fetch import fetch_published, use_own
from blocklora.data.manifest import read_manifest, read_shots
from blocklora.data.pixels import open_shot_images, open_test_pixels
from blocklora.data.registry import VARIABLE, Address, Download, load_registry
from blocklora.data.source import read_source, write_source
from blocklora.errors import UserError
from tests.data.dataset_archives import (
    CASES,
    CLASSES,
    LAYOUTS,
    PER_CLASS,
    archives,
    dataset_files,
    pack,
    split_lists,
    write_registry,
)

STUDIES = Path(__file__).parents[2] / "studies"
QUICK = Downloader(attempts=2, backoff=0.001, timeout=(2, 2))


@pytest.fixture
def site(server, tmp_path, monkeypatch):
    """Return a function that serves some archives of a dataset and returns its definition."""

    def publish(dataset, alternatives=(0,), split=True, **options):
        served = {name for i in alternatives for name in LAYOUTS[dataset][i]}

        def serve(name, content):
            if name in served or (split and name.startswith("split_zhou")):
                server.add(name, content, **options)
                return server.url(name)
            return server.url("gone")

        write_registry(tmp_path / "registry", dataset, serve)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "registry"))
        return load_registry()[dataset]

    return publish


def run(*arguments):
    return main([str(argument) for argument in arguments])


def tree_of(folder):
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("name", "alternative"), CASES)
def test_a_dataset_goes_from_its_archive_to_pixels(site, tmp_path, name, alternative):
    dataset = site(name, [alternative], cuts=1)
    source = fetch_published(dataset, tmp_path / "data", QUICK)
    assert source.origin == "downloaded"
    expected = set(LAYOUTS[name][alternative])
    assert {file["name"] for file in source.files if "split" not in file["name"]} == expected
    assert not (tmp_path / "data" / ".downloads" / name).exists()

    out = tmp_path / "out"
    write_source(out / "source.json", source)
    common = ("--source", out / "source.json", "--manifest", out / "manifest.csv")
    assert run("make-manifest", *common[:2], "--output", out / "manifest.csv") == 0
    assert run("verify-data", *common, "--output", out / "verification.json") == 0
    report = json.loads((out / "verification.json").read_text())
    assert report["passed"]
    assert report["classes"] == CLASSES
    manifest = read_manifest(out / "manifest.csv")
    content = dataset_files(name)
    for image in manifest:
        path = tmp_path / "data" / dataset.trees[0].folder / dataset.trees[0].images / image.path
        assert path.read_bytes() == content[image.path]
    if name != "fgvc_aircraft":
        rows = [tuple(row) for rows in split_lists(name).values() for row in rows]
        assert [image[:3] for image in manifest] == rows

    shots = ("--shots", 2, "--seeds", 1, "--output", out / "shots.csv")
    assert run("shots", "--manifest", out / "manifest.csv", *shots) == 0
    assert len(read_shots(out / "shots.csv", "train")) == 2 * CLASSES
    decode = ("decode-images", "--source", out / "source.json", "--pixel-budget-gb", 1)
    store = ("--manifest", out / "manifest.csv", "--size", 8, "--output", out / "t.npy")
    assert run(*decode, *store) == 0
    assert open_test_pixels(out / "t.npy").shape == (PER_CLASS["test"] * CLASSES, 8, 8, 3)
    assert run(*decode, "--shots-lists", out / "shots.csv", "--output", out / "t.npz") == 0
    assert open_shot_images(out / "t.npz").image(0).shape == (8, 9, 3)


def test_the_next_alternative_is_used_when_the_first_is_gone(site, tmp_path):
    source = fetch_published(site("eurosat", [1]), tmp_path, QUICK)
    assert source.files[0]["name"] == "EuroSAT_RGB.zip"


def test_a_hostile_archive_gives_way_to_the_next(site, server, tmp_path):
    dataset = site("oxford_flowers", [0, 1])
    hostile = pack("oxford_flowers.zip", {"jpg/image_1.jpg": b"", "../../evil.jpg": b""})
    archive = replace(dataset.downloads[1].archives[0], name="hostile.zip")
    server.add("hostile.zip", hostile)
    first = replace(archive, addresses=(Address(server.url("hostile.zip")),))
    dataset = replace(dataset, downloads=(Download((first,)), *dataset.downloads))
    source = fetch_published(dataset, tmp_path / "data", QUICK)
    assert source.files[0]["name"] == "102flowers.tgz"
    assert server.routes["/hostile.zip"].requests
    assert not list(tmp_path.rglob("evil.jpg"))


def test_a_second_fetch_asks_nothing_and_changes_nothing(site, server, tmp_path):
    dataset = site("stanford_cars", [1])
    first = fetch_published(dataset, tmp_path / "data", QUICK)
    before = tree_of(tmp_path / "data")
    server.routes.clear()
    assert fetch_published(dataset, tmp_path / "data", None) == first
    assert tree_of(tmp_path / "data") == before


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("convention", [0, -1])
def test_existing_trees_are_recognised_and_not_written_to(site, tmp_path, name, convention):
    dataset = site(name, [])
    tree = dataset.trees[convention]
    folder = tmp_path / "data" / tree.folder
    for path, content in dataset_files(name).items():
        (folder / tree.images / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / tree.images / path).write_bytes(content)
    if dataset.split_file:
        (folder / dataset.split_file.name).write_text(json.dumps(split_lists(name)))
    before = tree_of(tmp_path / "data")
    source = fetch_published(dataset, tmp_path / "data", None)
    assert source.origin == "existing"
    assert source.image_root == str(folder / tree.images)
    if dataset.split_file:
        assert source.split_file == str(folder / dataset.split_file.name)
    write_source(tmp_path / "s.json", source)
    common = ("--source", tmp_path / "s.json")
    assert run("make-manifest", *common, "--output", tmp_path / "m.csv") == 0
    common += ("--manifest", tmp_path / "m.csv", "--output", tmp_path / "v.json")
    assert run("verify-data", *common) == 0
    assert tree_of(tmp_path / "data") == before


def test_a_regenerated_split_is_not_used(site, tmp_path, caplog):
    dataset = site("dtd", [0])
    fetch_published(dataset, tmp_path / "data", QUICK)
    own = tmp_path / "data" / "dtd" / dataset.split_file.name
    own.write_text(json.dumps({"train": [], "val": [], "test": []}))
    source = fetch_published(dataset, tmp_path / "data", QUICK)
    assert source.split_file == str(tmp_path / "data" / "splits" / dataset.split_file.name)
    assert "not the published split" in caplog.text


def test_a_missing_split_is_an_error_that_says_where_to_get_it(site, tmp_path):
    dataset = site("oxford_pets", [0])
    fetch_published(dataset, tmp_path, QUICK)
    shutil.rmtree(tmp_path / "splits")
    with pytest.raises(UserError, match=r"split_zhou_OxfordPets\.json is missing.*regenerated"):
        fetch_published(dataset, tmp_path, None)


def test_the_packaged_split_serves_without_network(tmp_path):
    dataset = load_registry()["oxford_pets"]
    (tmp_path / "OxfordPets" / "images").mkdir(parents=True)
    source = fetch_published(dataset, tmp_path, None)
    assert source.split_file.endswith("split_zhou_OxfordPets.json.xz")
    assert source.origin == "existing"


def test_archives_of_the_user_are_used_and_kept(site, server, tmp_path):
    dataset = site("caltech101", [])
    (tmp_path / "archives").mkdir()
    for name, content in archives("caltech101", 1).items():
        (tmp_path / "archives" / name).write_bytes(content)
    before = tree_of(tmp_path / "archives")
    source = fetch_published(dataset, tmp_path, QUICK)
    assert source.files[0]["name"] == "101_ObjectCategories.tar.gz"
    assert tree_of(tmp_path / "archives") == before
    assert not server.routes.get("/caltech-101.zip")


def test_a_damaged_archive_of_the_user_is_named(site, tmp_path):
    dataset = site("dtd", [])
    (tmp_path / "archives").mkdir()
    for name, content in archives("dtd", 0).items():
        (tmp_path / "archives" / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"dtd-r1\.0\.1\.tar\.gz: \d+ bytes instead of \d+"):
        fetch_published(dataset, tmp_path, None)


def test_a_foreign_file_of_an_archives_name_is_not_used(site, tmp_path, caplog):
    dataset = site("oxford_pets", [0])
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "images.tar.gz").write_bytes(b"of another dataset")
    assert fetch_published(dataset, tmp_path, QUICK).origin == "downloaded"
    assert "18 bytes instead of" in caplog.text


def test_offline_says_what_to_put_where(site, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch_published(site("sun397"), tmp_path, None)
    text = str(caught.value)
    assert "SUN397.tar.gz: not in" in text
    assert f"Put SUN397.tar.gz or sun397.zip into {tmp_path}/archives" in text
    assert f"{tmp_path}/sun397 with SUN397" in text


def test_an_archive_that_lacks_images_of_the_split_is_refused(site, server, tmp_path):
    dataset = site("ucf101", [1])
    small = archives("ucf101", 1)["UCF-101-midframes.zip"]
    server.add("UCF-101-midframes.zip", small.replace(b"v_ApplyEyeMakeup", b"v_ApplyEyeMakeUp"))
    with pytest.raises(UserError, match="of the split is not in the archive"):
        fetch_published(dataset, tmp_path, QUICK)
    assert not (tmp_path / "ucf101").exists()
    # It came without a checksum, so the next call downloads it again.
    server.add("UCF-101-midframes.zip", small)
    assert fetch_published(dataset, tmp_path, QUICK).origin == "downloaded"


def test_an_incomplete_tree_in_the_way_is_not_overwritten(site, tmp_path):
    dataset = site("stanford_cars", [0])
    (tmp_path / "stanford_cars" / "cars_train").mkdir(parents=True)
    with pytest.raises(UserError, match="cars_train: this incomplete folder is in the way"):
        fetch_published(dataset, tmp_path, QUICK)
    assert [p.name for p in (tmp_path / "stanford_cars").iterdir()] == ["cars_train"]


def test_an_interrupted_unpacking_is_started_over(site, tmp_path):
    dataset = site("food101", [0])
    leftover = tmp_path / ".downloads" / "food101" / "unpacked" / "images" / "stale.jpg"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    fetch_published(dataset, tmp_path, QUICK)
    assert not (tmp_path / "food-101" / "images" / "stale.jpg").exists()


def test_too_little_disk_is_said_before_the_download(site, server, tmp_path, monkeypatch):
    dataset = site("dtd", [0])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"dtd-r1\.0\.1\.tar\.gz needs .* GB, but only 0\.0 GB are"):
        fetch_published(dataset, tmp_path, QUICK)
    assert not server.routes["/dtd-r1.0.1.tar.gz"].requests


def _fetch_in_process(registry, data_root, queue):
    os.environ[VARIABLE] = str(registry)
    source = fetch_published(load_registry()["eurosat"], data_root, QUICK)
    queue.put(source.origin)


def test_two_processes_fetch_one_dataset_once(site, server, tmp_path):
    site("eurosat", [0])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (tmp_path / "registry", tmp_path / "data", queue)
    processes = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == ["downloaded"] * 2
    for process in processes:
        process.join()
    assert len(server.routes["/EuroSAT.zip"].requests) == 1


def test_a_data_root_that_cannot_be_written_is_named(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write this lock file for dtd"):
        fetch_published(site("dtd"), tmp_path / "file", QUICK)


def test_own_datasets_come_from_a_folder_or_a_csv(tmp_path):
    for number, (path, content) in enumerate(dataset_files("dtd").items()):
        split = ("train", "test")[number % 2]
        for target in (f"folder/{split}/a b/{path[-8:]}", f"flat/{path[-8:]}"):
            (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / target).write_bytes(content)
    names = [path.name for path in (tmp_path / "flat").iterdir()]
    for split in ("train", "test"):
        folder = tmp_path / "folder" / split / "a b"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "it's $(odd)\n.jpg").write_bytes(dataset_files("dtd").popitem()[1])
    lines = [
        f"{name},pet,{split}" for name, split in zip(names, cycle(["train", "test"]), strict=False)
    ]
    (tmp_path / "d.csv").write_text("path,label,split\n" + "\n".join(lines))
    for source in (
        use_own("mine", tmp_path / "folder", None),
        use_own("mine", tmp_path / "flat", tmp_path / "d.csv"),
    ):
        write_source(tmp_path / "s.json", source)
        assert read_source(tmp_path / "s.json") == source
        common = ("--source", tmp_path / "s.json")
        assert run("make-manifest", *common, "--output", tmp_path / "m.csv") == 0
        common += ("--manifest", tmp_path / "m.csv", "--output", tmp_path / "v.json")
        assert run("verify-data", *common) == 0
        assert {image.split for image in read_manifest(tmp_path / "m.csv")} == {"train", "test"}


@pytest.mark.parametrize(("images", "csv"), [("none", None), (".", "none.csv")])
def test_a_missing_own_dataset_is_named(tmp_path, images, csv):
    with pytest.raises(UserError, match=r"no such (folder|file); own_datasets\.mine\."):
        use_own("mine", tmp_path / images, csv and tmp_path / csv)


def test_a_source_whose_folder_is_gone_is_named(tmp_path):
    write_source(tmp_path / "s.json", use_own("mine", tmp_path, None))
    record = json.loads((tmp_path / "s.json").read_text())
    record["image_root"] = str(tmp_path / "gone")
    (tmp_path / "s.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"the image folder .*gone of mine is gone"):
        read_source(tmp_path / "s.json")
    for wrong in ({}, [], record | {"origin": "stolen"}, record | {"image_root": None}):
        (tmp_path / "s.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="not a source record"):
            read_source(tmp_path / "s.json")


def test_pictures_of_the_small_datasets_differ():
    content = [c for name in LAYOUTS for p, c in dataset_files(name).items() if p.endswith("jpg")]
    assert len(set(content)) == len(content)
    assert np.prod([CLASSES, sum(PER_CLASS.values()), len(LAYOUTS)]) == len(content)


@pytest.fixture
def study(tmp_path):
    """Return a function that writes a study of one dataset, otherwise that of the miniature."""

    def write(dataset, **changes):
        document = yaml.safe_load((STUDIES / "mini.yaml").read_text(encoding="utf-8"))
        document |= {"name": "small", "datasets": [dataset], **changes}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return ("fetch-dataset", "--study", tmp_path / "small.yaml", "--dataset", dataset)

    return write


def command(*arguments):
    """Run `blocklora` as a process of its own, which knows one registry only."""
    code = "import sys; from blocklora.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_fetches_a_published_dataset(site, study, tmp_path):
    site("oxford_pets", [0])
    arguments = (*study("oxford_pets"), "--data-root", tmp_path / "data")
    arguments += ("--output", tmp_path / "source.json")
    failed = command(*arguments, "--offline")
    assert failed.returncode == 1
    assert "Oxford-IIIT Pets is not below" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "source.json").exists()
    assert command(*arguments).returncode == 0
    source = read_source(tmp_path / "source.json")
    assert source.origin == "downloaded"
    assert source.image_root == str(tmp_path / "data" / "oxford_pets" / "images")
    # Offline, the tree that is there now is enough.
    assert command(*arguments, "--offline").returncode == 0
    assert read_source(tmp_path / "source.json") == source


def test_the_command_uses_own_datasets(study, tmp_path):
    (tmp_path / "my images").mkdir()
    arguments = study("mine", own_datasets={"mine": {"images": str(tmp_path / "my images")}})
    arguments += ("--data-root", tmp_path / "data", "--output", tmp_path / "source.json")
    assert command(*arguments).returncode == 0
    assert read_source(tmp_path / "source.json").image_root == str(tmp_path / "my images")
    assert not (tmp_path / "data").exists()
