"""The definitions of datasets: its entries against the facts of the datasets."""

import hashlib

import pytest
import yaml

from blocklora.data.imagenet import read_classes
from blocklora.data.manifest import SPLITS, classnames
from blocklora.data.registry import PACKAGED, VARIABLE, Address, load_registry
from blocklora.data.splits import read_split_file
from blocklora.errors import UserError
from blocklora.study import digests, study
from tests.data import small_imagenet

# Classes and images: KaiyangZhou/CoOp@ff61507 and linzhiqiu/cross_modal_adaptation@ac9077e
# (splits/ counted; indices/ for SUN397, Food-101 and FGVC-Aircraft).
PUBLISHED = {
    "imagenet": (1000, 1281167, 0, 50000),
    "sun397": (397, 15880, 3970, 19850),
    "fgvc_aircraft": (100, 3334, 3333, 3333),
    "eurosat": (10, 13500, 5400, 8100),
    "stanford_cars": (196, 6509, 1635, 8041),
    "food101": (101, 50500, 20200, 30300),
    "oxford_pets": (37, 2944, 736, 3669),
    "oxford_flowers": (102, 4093, 1633, 2463),
    "caltech101": (100, 4128, 1649, 2465),
    "dtd": (47, 2820, 1128, 1692),
    "ucf101": (101, 7639, 1898, 3783),
}


def paper():
    return yaml.safe_load((PACKAGED / "paper.yaml").read_text(encoding="utf-8"))


def test_the_registry_has_the_datasets_of_every_packaged_file():
    files = sorted(PACKAGED.glob("*.yaml"))
    assert PACKAGED / "paper.yaml" in files
    names = [name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8"))]
    assert list(load_registry(PACKAGED)) == names


def test_the_eleven_datasets_have_their_published_numbers():
    registry = load_registry(PACKAGED)
    for name, (classes, *images) in PUBLISHED.items():
        assert registry[name].classes == classes
        assert [registry[name].images[split] for split in SPLITS] == images
    assert list(paper()) == list(PUBLISHED)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "split_file" in paper()[n]])
def test_packaged_splits_agree_with_the_numbers(name):
    dataset = load_registry(PACKAGED)[name]
    if not dataset.packaged_split().exists():
        assert name in ("sun397", "food101")
        return
    images = read_split_file(dataset.packaged_split())
    counts = [sum(image.split == split for image in images) for split in SPLITS]
    names = classnames(images)
    assert (len(names), *counts) == PUBLISHED[name]
    assert len(set(names)) == len(names)


def test_every_download_is_verifiable_or_says_so_and_dead_addresses_come_last():
    unverified = set()
    for name, entry in paper().items():
        files = [entry["split_file"]] if "split_file" in entry else []
        archives = [a for download in entry["downloads"] for a in download["archives"]]
        for file in files + archives:
            states = [address["status"] == "dead" for address in file["addresses"]]
            assert states == sorted(states), file["name"]
            assert file["addresses"] or "gated" in entry
            if file["checksum"] is None:
                unverified.add(file["name"])
        assert not [f for f in files if f["checksum"] is None], name
        # A dataset never hangs on an unverified archive alone.
        assert entry["downloads"][0]["archives"][0]["checksum"]
    assert unverified == {
        "fgvc_aircraft.zip",
        "oxford_pets.zip",
        "oxford_flowers.zip",
        "UCF-101-midframes.zip",
    }


def test_imagenet_class_names_are_those_of_clip():
    classes = read_classes(PACKAGED / "imagenet_classes.txt")
    names = list(classes.values())
    assert list(classes) == sorted(classes)
    # IMAGENET_CLASSNAMES of open_clip and the list in datasets/imagenet.py of
    # MaxZanella/CLIP-LoRA@358f0d7, joined by newlines
    digest = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == digest
    assert classes["n01440764"] == "tench"
    assert classes["n15075141"] == "toilet paper"
    for labels in load_registry(PACKAGED)["imagenet"].same_names:
        assert len({names[label] for label in labels}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        (
            "a: {layout: split_file}",
            r"a\.classes: missing; it must be a whole number",
        ),
        ("[a, b]", r'the file: \["a", "b"\] is not allowed; it must be a mapping from names'),
        ("A: 1", r'A: 1 is not allowed; .*\n.*: "A" is not allowed; it must be a name of small'),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: !!binary aGVsbG8=", "not valid YAML: could not determine a constructor for the tag"),
        ("!!binary aGVsbG8=: 1", "not valid YAML: could not determine a constructor for the tag"),
        ("a: !!set {b}", "not valid YAML: could not determine a constructor for the tag"),
        ("a: !!timestamp 2020-01-01", "not valid YAML: could not determine a constructor"),
    ],
)
def test_a_faulty_registry_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"x\.yaml(, line \d)?: {message}"):
        load_registry(tmp_path)


COMPLETE = {
    "display_name": "A",
    "layout": "drawn",
    "classes": 2,
    "licence": "MIT",
    "images": {"train": 1, "val": 0, "test": 1},
}
FILE = {"name": "a.zip", "bytes": None, "checksum": None, "addresses": []}
ARCHIVE = FILE | {"unpack": {"": "."}}
TREE = {"convention": "CoOp", "folder": "a", "images": ".", "needs": ["a"]}
FETCHED = COMPLETE | {
    "layout": "split_file",
    "template": "a {}.",
    "class_names": "in the split",
    "citation": "A",
    "trees": [TREE],
    "split_file": FILE,
    "downloads": [{"archives": [ARCHIVE]}],
}


def download(**changes):
    return FETCHED | {"downloads": [{"archives": [ARCHIVE | changes]}]}


def test_the_least_definitions_are_complete(tmp_path):
    entries = {"a": COMPLETE, "b": FETCHED, "c": download()}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(entries))
    assert list(load_registry(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (COMPLETE | {"classes": 1}, "classes: 1 is not allowed; it must be a whole number of "
         "at least 2"),
        (COMPLETE | {"classes": 2.0}, "classes: 2.0 is not allowed; it must be a whole number"),
        (COMPLETE | {"classes": True}, "classes: true is not allowed; it must be a whole number"),
        (COMPLETE | {"display_name": ""}, 'display_name: "" is not allowed; it must be the name '
         "of the dataset in tables"),
        (COMPLETE | {"layout": "flat"}, "layout: \"flat\" is not allowed; it must be one of "
         "split_file, aircraft, imagenet, drawn"),
        (COMPLETE | {"images": {"train": 1, "val": 0, "test": 1, "x": 1}},
         'images: "x" is not allowed; it must be one of train, val, test'),
        (COMPLETE | {"name": "a"}, "name: unknown key (allowed: layout, display_name, classes, "
         "images, licence, template, class_names, classes_file, same_names, trees, split_file, "
         "downloads, gated, citation)"),
        (COMPLETE | {"images": {"train": 1, "test": 1}}, 'images: {"test": 1, "train": 1} is not '
         "allowed; it must be the numbers of images in train and test, at least 1, and in val"),
        (COMPLETE | {"trees": [TREE]}, "layout: a drawn dataset has no trees"),
        (COMPLETE | {"same_names": [[1]]}, "same_names[0]: [1] is not allowed; "),
        ({key: value for key, value in FETCHED.items() if key != "template"},
         "template: missing; the layout split_file needs it"),
        (FETCHED | {"template": "a {} {}"}, 'template: "a {} {}" is not allowed; '),
        (FETCHED | {"layout": "imagenet"},
         "classes_file: missing; the layout imagenet needs it"),
        (FETCHED | {"trees": [TREE | {"needs": []}]}, "trees[0].needs: [] is not allowed; "),
        (download(name="a/b"), 'downloads[0].archives[0].name: "a/b" is not allowed; '),
        (download(bytes=0), "downloads[0].archives[0].bytes: 0 is not allowed; "),
        (download(checksum="md5:0"), 'downloads[0].archives[0].checksum: "md5:0" is not allowed; '),
        (download(addresses=[{"url": "ftp://a", "status": "live"}]),
         'downloads[0].archives[0].addresses[0].url: "ftp://a" is not allowed; '),
        (download(addresses=[{"url": "http://a", "state": "live"}]),
         "downloads[0].archives[0].addresses[0].state: unknown key; did you mean status?"),
        (download(unpack={}), "downloads[0].archives[0].unpack: {} is not allowed; "),
        (download(unpack={"a": {"b": 1}}), "downloads[0].archives[0].unpack: "),
    ],
)  # fmt: skip
def test_each_fault_of_a_definition_is_one_line(tmp_path, entry, line):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"a": entry}))
    with pytest.raises(UserError) as caught:
        load_registry(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}: a.{line}")
    assert "\n" not in str(caught.value)


def test_all_faults_of_all_files_are_told_at_once(tmp_path):
    for name in ("x", "y"):
        faulty = COMPLETE | {"classes": name, "licence": "", "trees": [TREE | {"folder": 1}]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({name: faulty}))
    with pytest.raises(UserError) as caught:
        load_registry(tmp_path)
    lines = str(caught.value).splitlines()
    places = ("classes", "licence", "trees[0].folder")
    expected = [f"{tmp_path}/{name}.yaml: {name}.{place}: " for name in "xy" for place in places]
    assert len(lines) == len(expected)
    assert all(line.startswith(place) for line, place in zip(lines, expected, strict=True))


def test_a_name_may_be_defined_once(tmp_path):
    entry = yaml.safe_dump({"a": COMPLETE})
    (tmp_path / "x.yaml").write_text(entry)
    assert load_registry(tmp_path)["a"].images == {"train": 1, "val": 0, "test": 1}
    (tmp_path / "y.yaml").write_text(entry)
    with pytest.raises(UserError, match=r"y\.yaml: dataset a is already defined"):
        load_registry(tmp_path)


def test_the_environment_can_name_another_registry(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="no dataset definitions"):
        load_registry()


def test_lists_of_images_follow_class_names_and_splits_but_not_addresses(
    tmp_path, monkeypatch, request
):
    request.addfinalizer(study.registry.cache_clear)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    small_imagenet.write_registry(tmp_path)
    definitions = tmp_path / "dtd.yaml"
    definitions.write_text(yaml.safe_dump({"dtd": paper()["dtd"]}))

    def rules():
        study.registry.cache_clear()
        return {name: digests.listing_rules(name) for name in ("imagenet", "dtd", "mine")}

    first = rules()
    assert first["mine"] is None
    classes = tmp_path / "imagenet_classes.txt"
    classes.write_text(classes.read_text().replace("tench", "fish"))
    second = rules()
    assert [name for name in first if first[name] != second[name]] == ["imagenet"]
    definitions.write_text(definitions.read_text().replace("https://", "http://"))
    assert rules() == second
    definitions.write_text(definitions.read_text().replace("sha256:f26e", "sha256:0000"))
    assert [name for name, rule in rules().items() if rule != second[name]] == ["dtd"]


def test_drive_ids_are_shown_as_links():
    assert Address("gdrive:abc").link == "https://drive.google.com/uc?id=abc"
    assert Address("https://x.org/a").link == "https://x.org/a"
