"""Readers of split files, lists, folders and CSV files, and the manifest they end in."""

import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocklora.cache import Cache
from blocklora.cli import main
from blocklora.data.manifest import (
    LabelledImage,
    classnames,
    iterate_manifest,
    read_manifest,
    read_shots,
    write_manifest,
    write_shots,
)
from blocklora.data.sampling import draw_shots
from blocklora.data.splits import (
    read_aircraft_lists,
    read_csv_split,
    read_split_file,
    scan_image_folder,
    scan_images,
)
from blocklora.errors import UserError

# Any name a file system can hold, the bytes that are not UTF-8 included.
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.sampled_from(["\udcff", '"', "'", "\n", "\r", ",", "$", " "]),
    min_size=1,
    max_size=12,
)
IMAGES = st.lists(
    st.builds(
        LabelledImage, NAMES, st.integers(0, 2000), NAMES, st.sampled_from(["train", "val", "test"])
    ),
    max_size=8,
)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@given(images=IMAGES)
def test_manifest_and_shots_list_survive_any_name(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("csv")
    write_manifest(folder / "m.csv", images)
    assert read_manifest(folder / "m.csv") == images
    write_shots(folder / "s.csv", images)
    assert read_shots(folder / "s.csv") == images
    assert read_shots(folder / "s.csv", "val") == [i for i in images if i.split == "val"]


def test_manifest_columns_are_those_of_the_contract(tmp_path):
    write_manifest(tmp_path / "m.csv", [LabelledImage("a/b c.jpg", 3, "x, y", "test")])
    assert (
        tmp_path / "m.csv"
    ).read_text() == 'path,label,classname,split\na/b c.jpg,3,"x, y",test\n'
    write_shots(tmp_path / "s.csv", [LabelledImage("a.jpg", 3, "x", "val")])
    assert (tmp_path / "s.csv").read_text() == "part,path,label,classname\nval,a.jpg,3,x\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "header"),
        ("path,label\n", "header"),
        ("path,label,classname,split\na,1,x\n", "line 2"),
        ("path,label,classname,split\na,one,x,test\n", "line 2"),
        ("path,label,classname,split\na,1,x,testing\n", "line 2"),
        ('path,label,classname,split\n"a,1,x,test', "line 2"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(UserError, match=rf"m\.csv.*{message}.*make-manifest"):
        list(iterate_manifest(tmp_path / "m.csv"))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: No such file"):
        read_manifest(tmp_path / "none.csv")


def test_class_names_come_in_label_order():
    images = [LabelledImage("a", 1, "b", "train"), LabelledImage("b", 0, "a", "test")]
    assert classnames(images) == ["a", "b"]
    with pytest.raises(UserError, match="two class names"):
        classnames([*images, LabelledImage("c", 1, "c", "test")])
    with pytest.raises(UserError, match="labels must be 0 to 0, but 0 has no image"):
        classnames(images[:1])


SPLIT = {
    "train": [["a/1.jpg", 1, "b"], ["a/2.jpg", 0, "a"]],
    "val": [],
    "test": [["t.jpg", 0, "a"]],
}


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_split_file_is_read_in_its_order(tmp_path, suffix):
    content = json.dumps(SPLIT).encode()
    path = tmp_path / f"split_zhou_X.json{suffix}"
    path.write_bytes(lzma.compress(content) if suffix else content)
    assert read_split_file(path) == [
        ("a/1.jpg", 1, "b", "train"),
        ("a/2.jpg", 0, "a", "train"),
        ("t.jpg", 0, "a", "test"),
    ]


@pytest.mark.parametrize("place", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "", "a\0b"])
def test_paths_that_leave_the_image_folder_are_refused(tmp_path, place):
    split = {**SPLIT, "test": [[place, 0, "a"]]}
    (tmp_path / "s.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match="not a path below the image folder"):
        read_split_file(tmp_path / "s.json")
    if "\0" not in place:
        (tmp_path / "s.csv").write_text(f"path,label,split\n{place},a,test\n")
        with pytest.raises(UserError, match="not a path below the image folder"):
            read_csv_split(tmp_path / "s.csv")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train": []}', '{"train": [["a"]]}'])
def test_a_damaged_split_file_is_refused(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=r"s\.json: not a readable split file"):
        read_split_file(tmp_path / "s.json")


def test_a_missing_split_file_is_an_error_and_not_made(tmp_path):
    with pytest.raises(UserError, match="fetch the published one"):
        read_split_file(tmp_path / "split.json")
    assert not list(tmp_path.iterdir())


def test_aircraft_labels_are_line_numbers_of_variants(tmp_path):
    (tmp_path / "variants.txt").write_text("707-320\nF-16A/B\nDHC-8-100\n")
    (tmp_path / "images_variant_train.txt").write_text("0000002 DHC-8-100\n0000001 F-16A/B\n")
    (tmp_path / "images_variant_val.txt").write_text("0000003 707-320\n")
    (tmp_path / "images_variant_test.txt").write_text("0000004 F-16A/B\n")
    assert read_aircraft_lists(tmp_path) == [
        ("images/0000002.jpg", 2, "DHC-8-100", "train"),
        ("images/0000001.jpg", 1, "F-16A/B", "train"),
        ("images/0000003.jpg", 0, "707-320", "val"),
        ("images/0000004.jpg", 1, "F-16A/B", "test"),
    ]
    (tmp_path / "images_variant_test.txt").write_text("0000004 MiG-29\n")
    with pytest.raises(UserError, match=r"test\.txt: 'MiG-29' is not in variants\.txt"):
        read_aircraft_lists(tmp_path)


def test_image_folder_is_scanned_as_torchvision_scans_it(tmp_path):
    from torchvision.datasets import ImageFolder

    touch(tmp_path, *(f"train/{c}/{i}" for c in ("b", "a b", "É") for i in ("9.JPEG", "10.png")))
    touch(tmp_path, "train/b/deep/er/1.jpg", "train/b/deep/0.webp", "train/b/Z.jpg")
    touch(tmp_path, "train/b/notes.txt", "train/b/x.gif", "train/list.csv")
    touch(tmp_path, "test/b/1.jpg", "test/a b/1.jpg", "test/É/1.jpg")
    reference = ImageFolder(str(tmp_path / "train"))
    images = list(scan_image_folder(tmp_path))
    train = [(str(tmp_path / i.path), i.label) for i in images if i.split == "train"]
    assert train == reference.samples
    assert classnames(images) == reference.classes
    assert [i.path for i in images if i.split == "test"] == [
        "test/a b/1.jpg", "test/b/1.jpg", "test/É/1.jpg",
    ]  # fmt: skip


def test_image_folder_faults_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train: No such file.*<split>/<class name>/"):
        list(scan_image_folder(tmp_path))
    touch(tmp_path, "train/a/1.jpg", "test/b/1.jpg")
    with pytest.raises(UserError, match="test/b: this class has no folder in"):
        list(scan_image_folder(tmp_path))
    (tmp_path / "train/b").mkdir()
    with pytest.raises(UserError, match="train/b: this class has no images"):
        list(scan_image_folder(tmp_path))
    with pytest.raises(UserError, match="this class has no images"):
        scan_images(tmp_path / "train/b")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "path,label,split\nx.jpg,cat,test\ny.jpg,ant,train\nz.jpg,cat,train\n",
            [
                ("y.jpg", 0, "ant", "train"),
                ("z.jpg", 1, "cat", "train"),
                ("x.jpg", 1, "cat", "test"),
            ],
        ),
        (
            'split,label,path,classname\ntrain,1,"a, b.jpg",big cat\nval,0,c.jpg,ant\n',
            [("a, b.jpg", 1, "big cat", "train"), ("c.jpg", 0, "ant", "val")],
        ),
    ],
)
def test_own_csv_is_read_with_or_without_class_names(tmp_path, content, expected):
    (tmp_path / "d.csv").write_text(content, encoding="utf-8-sig")
    assert read_csv_split(tmp_path / "d.csv") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,split\n", "the column label is missing; correct it"),
        ("path,label,split\na.jpg,x,testing\n", "row 2: split is 'testing'"),
        ("path,label,split,classname\na.jpg,x,test,y\n", "row 2: label 'x' must be an integer"),
        ('path,label,split\n"a', "not a readable CSV"),
        ("path,label,split\na.jpg,x,test\nb.jpg\n", "line 3: wrong number of cells"),
    ],
)
def test_faults_of_an_own_csv_are_named(tmp_path, content, message):
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_csv_split(tmp_path / "d.csv")


def test_shots_command_prints_the_list_of_a_split_file(tmp_path, capfdbinary):
    lists = {
        split: [[f"é {c}/{i}.jpg", c, f"c{c}"] for c in (1, 0) for i in range(20)]
        for split in ("train", "val", "test")
    }
    (tmp_path / "s.json").write_text(json.dumps(lists))
    arguments = ["shots", "--split-file", str(tmp_path / "s.json"), "--shots", "2", "--seeds", "1"]
    printed = {}
    for part in ("val", "train"):
        assert main([*arguments, "--part", part]) == 0
        printed[part] = capfdbinary.readouterr().out.decode().splitlines()
    # The same lists from a manifest, through the CSV file.
    write_manifest(tmp_path / "m.csv", read_split_file(tmp_path / "s.json"))
    arguments = ["--shots", "2", "--seeds", "1", "--output", str(tmp_path / "o.csv")]
    assert main(["shots", "--manifest", str(tmp_path / "m.csv"), *arguments]) == 0
    for part, lines in printed.items():
        assert lines == [image.path for image in read_shots(tmp_path / "o.csv", part)]
        assert len(lines) == 4


def test_shots_command_draws_a_list_for_each_number_of_shots_and_seed(tmp_path):
    images = [
        LabelledImage(f"{split}/{label}/{number}", label, f"c{label}", split)
        for split in ("train", "val", "test")
        for label in range(2)
        for number in range(20)
    ]
    write_manifest(tmp_path / "m.csv", images)
    pairs = [(shots, seed) for shots in (1, 4) for seed in (1, 2)]
    outputs = [tmp_path / f"{shots}-{seed}.csv" for shots, seed in pairs]
    arguments = ["--shots", 1, 4, "--seeds", 1, 2, "--output", *outputs]
    arguments += ["--manifest", tmp_path / "m.csv", "--cache", tmp_path / "cache", "--key", "0123"]
    assert main(["shots", *map(str, arguments)]) == 0
    for (shots, seed), output in zip(pairs, outputs, strict=True):
        assert not output.is_symlink()
        drawn = draw_shots(images, shots, seed)
        for part in ("train", "val"):
            assert read_shots(output, part) == [image for image in drawn if image.split == part]
    assert len(list(Cache(tmp_path / "cache").entries())) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--split-file", "x"],
        ["--split-file", "x", "--part", "val", "--seeds", "1", "2"],
        ["--manifest", "x", "--part", "val"],
        ["--manifest", "x", "--seeds", "1", "2", "--output", "o.csv"],
    ],
)
def test_shots_command_says_which_options_go_together(arguments, capsys):
    assert main(["shots", "--shots", "1", "--seeds", "1", *arguments]) == 1
    assert "needs" in capsys.readouterr().err
