"""Decoded pixels against torchvision on PIL images, and the stores against plain decoding."""

import io
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blocklora.cli import main
from blocklora.data.decode import ordered_map, write_shots_store, write_test_store
from blocklora.data.manifest import LabelledImage, write_manifest, write_shots
from blocklora.data.pixels import LazyPixels, open_shot_images, open_test_pixels, training_pixels
from blocklora.data.preprocess import evaluation_transform
from blocklora.data.source import Source, write_source
from blocklora.errors import UserError

MODES = ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16")
PLENTY = 1e12


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return (
        Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    )


def torchvision_pipeline(image, size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    resize = Resize(size, interpolation=InterpolationMode.BICUBIC)
    return np.asarray(Compose([resize, CenterCrop(size)])(image.convert("RGB")))


@settings(max_examples=60)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    size=st.sampled_from([1, 16, 32, 33, 64]),
    mode=st.sampled_from(MODES),
)
def test_evaluation_transform_equals_torchvision(width, height, size, mode):
    image = noise(width, height, mode)
    found = evaluation_transform(image, size)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, torchvision_pipeline(image, size))


@pytest.mark.parametrize("dimensions", [(500, 375), (333, 500), (224, 224), (225, 224), (64, 64)])
def test_evaluation_transform_equals_torchvision_at_224(dimensions):
    image = noise(*dimensions)
    np.testing.assert_array_equal(
        evaluation_transform(image, 224), torchvision_pipeline(image, 224)
    )


@pytest.fixture
def folder(tmp_path):
    """Return a folder of six images of different shapes and formats, and their paths."""
    names = ["a/x.jpg", "a/y.png", 'b/it\'s "odd".jpg', "b/ü\n.png", "c/gray.jpg", "c/cmyk.jpg"]
    modes = ["RGB", "P", "RGB", "RGBA", "L", "CMYK"]
    for seed, (name, mode) in enumerate(zip(names, modes, strict=True)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(20 + 7 * seed, 50 - 5 * seed, mode, seed).save(path)
    return tmp_path / "images", names


def plain(root, name):
    return Image.open(root / name).convert("RGB")


@pytest.mark.parametrize("budget", [PLENTY, 1])
@pytest.mark.parametrize("workers", [1, 3])
def test_test_store_holds_what_plain_decoding_gives(folder, tmp_path, budget, workers):
    root, names = folder
    store = tmp_path / "test-32px.npy"
    write_test_store(store, root, names, 32, workers, budget)
    expected = np.stack([torchvision_pipeline(plain(root, name), 32) for name in names])
    pixels = open_test_pixels(store, workers)
    assert (len(pixels), pixels.shape, pixels.dtype) == (6, (6, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(pixels[:], expected)
    np.testing.assert_array_equal(pixels[1:4], expected[1:4])
    np.testing.assert_array_equal(pixels[-1], expected[-1])
    np.testing.assert_array_equal(pixels[np.array([4, 0])], expected[[4, 0]])
    assert pixels[3:3].shape == (0, 32, 32, 3)


def test_test_store_within_budget_is_a_plain_memory_mapped_array(folder, tmp_path):
    root, names = folder
    write_test_store(tmp_path / "s.npy", root, names, 8, 2, 6 * 8 * 8 * 3)
    assert isinstance(open_test_pixels(tmp_path / "s.npy"), np.memmap)
    assert np.load(tmp_path / "s.npy").shape == (6, 8, 8, 3)
    write_test_store(tmp_path / "s.npy", root, names, 8, 2, 6 * 8 * 8 * 3 - 1)
    assert not isinstance(open_test_pixels(tmp_path / "s.npy"), np.ndarray)
    assert (tmp_path / "s.npy").stat().st_size < 1000


@pytest.mark.parametrize("budget", [PLENTY, 1])
@pytest.mark.parametrize("workers", [1, 3])
def test_training_store_holds_full_resolution_in_order(folder, tmp_path, budget, workers):
    root, names = folder
    names = [*names[::-1], names[0]]
    images = [LabelledImage(name, label % 3, "c", "train") for label, name in enumerate(names)]
    write_shots_store(tmp_path / "s.npz", root, images, workers, budget)
    store = open_shot_images(tmp_path / "s.npz")
    assert len(store) == 7
    assert store.paths == names
    assert store.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert store.labels.dtype == np.int64
    for index, name in enumerate(names):
        found = store.image(index)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.asarray(plain(root, name)))


@pytest.mark.parametrize("budget", [PLENTY, 1])
def test_training_images_can_be_had_with_the_preprocessing_of_test_images(folder, tmp_path, budget):
    root, names = folder
    images = [LabelledImage(name, 0, "c", "train") for name in names]
    write_shots_store(tmp_path / "s.npz", root, images, 1, budget)
    pixels = training_pixels(open_shot_images(tmp_path / "s.npz"), 32, workers=2)
    expected = np.stack([torchvision_pipeline(plain(root, name), 32) for name in names])
    assert (len(pixels), pixels.shape, pixels.dtype) == (6, expected.shape, np.uint8)
    np.testing.assert_array_equal(pixels[:4], expected[:4])
    np.testing.assert_array_equal(pixels[4:8], expected[4:])


def test_images_are_prepared_by_as_many_threads_as_asked_for():
    together = threading.Barrier(3, timeout=20)

    def image(number):
        together.wait()
        return noise(40, 30, seed=number)

    found = LazyPixels(image, 6, 16, workers=3)[:]
    expected = [evaluation_transform(noise(40, 30, seed=number), 16) for number in range(6)]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_training_store_is_mapped_not_read(tmp_path):
    noise(1500, 1000).save(tmp_path / "big.png", compress_level=0)
    images = [LabelledImage("big.png", 0, "c", "train")] * 8
    write_shots_store(tmp_path / "s.npz", tmp_path, images, 1, PLENTY)
    tracemalloc.start()
    store = open_shot_images(tmp_path / "s.npz")
    store.image(5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000 < (tmp_path / "s.npz").stat().st_size / 8


def test_stores_are_byte_equal_when_made_again(folder, tmp_path):
    root, names = folder
    images = [LabelledImage(name, 0, "c", "train") for name in names]
    for copy in ("1", "2"):
        write_shots_store(tmp_path / f"{copy}.npz", root, images, int(copy), PLENTY)
        write_test_store(tmp_path / f"{copy}.npy", root, names, 8, int(copy), PLENTY)
    for suffix in ("npz", "npy"):
        first, second = (tmp_path / f"{copy}.{suffix}" for copy in ("1", "2"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_an_unreadable_image_is_named_and_leaves_no_store(folder, tmp_path, content):
    root, names = folder
    if content == "truncated":
        stream = io.BytesIO()
        noise(200, 200).save(stream, "JPEG")
        content = stream.getvalue()[: stream.tell() // 2]
    (root / names[2]).write_bytes(content)
    images = [LabelledImage(name, 0, "c", "train") for name in names]
    with pytest.raises(UserError, match="odd"):
        write_test_store(tmp_path / "s.npy", root, names, 8, 2, PLENTY)
    with pytest.raises(UserError, match="odd"):
        write_shots_store(tmp_path / "s.npz", root, images, 2, PLENTY)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_store_cut_short_is_refused(folder, tmp_path, keep):
    root, names = folder
    images = [LabelledImage(name, 0, "c", "train") for name in names]
    write_shots_store(tmp_path / "s.npz", root, images, 1, PLENTY)
    write_test_store(tmp_path / "s.npy", root, names, 8, 1, PLENTY)
    for opener, path in (
        (open_shot_images, tmp_path / "s.npz"),
        (open_test_pixels, tmp_path / "s.npy"),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(UserError, match=f"{path.name}: not a whole pixel store"):
            opener(path)


@pytest.mark.parametrize("opener", [open_shot_images, open_test_pixels])
def test_a_missing_store_is_named(tmp_path, opener):
    with pytest.raises(UserError, match="no such file"):
        opener(tmp_path / "none.npy")


def test_no_room_on_the_disk_is_said_before_decoding(folder, tmp_path, monkeypatch):
    root, names = folder
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"only 0\.00 GB are free"):
        write_test_store(tmp_path / "s.npy", root, names, 8, 1, PLENTY)


def test_a_disk_that_fills_up_leaves_no_store(tmp_path, small_files):
    noise(500, 500).save(tmp_path / "a.png")
    images = [LabelledImage("a.png", 0, "c", "train")] * 2
    with pytest.raises(UserError, match=r"s\.npz: cannot be written \(File too large\)"):
        write_shots_store(tmp_path / "s.npz", tmp_path, images, 1, PLENTY)
    with pytest.raises(UserError, match=r"s\.npy: cannot be written \(File too large\)"):
        write_test_store(tmp_path / "s.npy", tmp_path, ["a.png"] * 2, 500, 1, PLENTY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_ordered_map_keeps_order_and_holds_few_results():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * 2, items(), 2)
    assert next(results) == 0
    assert len(taken) < 15
    assert list(results) == [2 * number for number in range(1, 100)]


@pytest.fixture
def decode(folder, tmp_path):
    """Run `blocklora decode-images` on three lists of six images, and return its exit status."""
    root, names = folder
    splits = ["train", "test", "val", "test", "train", "test"]
    images = [LabelledImage(n, 0, "c", s) for n, s in zip(names, splits, strict=True)]
    write_manifest(tmp_path / "m.csv", images)
    shots = [image for image in images if image.split != "test"]
    write_shots(tmp_path / "s.csv", shots)
    write_shots(tmp_path / "r.csv", shots[::-1])
    write_source(tmp_path / "source.json", Source("d", str(root), None, "user"))

    def run(*arguments):
        command = ["decode-images", "--source", tmp_path / "source.json", "--pixel-budget-gb", 1]
        return main([str(argument) for argument in (*command, *arguments)])

    return run


def test_decode_images_command_decodes_test_images_and_training_shots(folder, tmp_path, decode):
    root, names = folder
    outputs = [tmp_path / name for name in ("s.npz", "r.npz", "t.npy")]
    lists = ["--shots-lists", tmp_path / "s.csv", tmp_path / "r.csv", "--workers", 2]
    assert decode(*lists, "--output", *outputs[:2]) == 0
    manifest = ["--manifest", tmp_path / "m.csv", "--size", 16]
    assert decode(*manifest, "--output", outputs[2]) == 0
    assert open_shot_images(outputs[0]).paths == [names[0], names[4]]
    assert open_shot_images(outputs[1]).paths == [names[4], names[0]]
    expected = [torchvision_pipeline(plain(root, names[i]), 16) for i in (1, 3, 5)]
    np.testing.assert_array_equal(open_test_pixels(outputs[2]), np.stack(expected))


def test_decode_images_command_needs_a_file_for_each_list(tmp_path, decode, capsys):
    lists = ["--shots-lists", tmp_path / "s.csv", tmp_path / "r.csv"]
    assert decode(*lists, "--output", tmp_path / "s.npz") == 1
    assert "2 lists of images need as many files of --output" in capsys.readouterr().err
    assert decode(*lists[:2], "--size", 16, "--output", tmp_path / "s.npz") == 1
    assert "--size goes with --manifest" in capsys.readouterr().err


def test_pixels_of_equal_lists_are_decoded_once_for_all_studies(tmp_path, decode, monkeypatch):
    """The key is the study's; what a list holds counts, not what it is called."""
    kept = ["--cache", tmp_path / "cache", "--key", "0123"]
    assert decode("--shots-lists", tmp_path / "s.csv", "--output", tmp_path / "s.npz", *kept) == 0
    content = (tmp_path / "s.npz").read_bytes()
    (tmp_path / "s.csv").rename(tmp_path / "other.csv")
    monkeypatch.setattr("blocklora.data.decode.write_shots_store", lambda *_, **__: 1 / 0)
    other = ["--shots-lists", tmp_path / "other.csv", "--output", tmp_path / "other.npz", *kept]
    assert decode(*other) == 0
    assert (tmp_path / "other.npz").is_symlink()
    assert (tmp_path / "other.npz").read_bytes() == content
    for changed in (["--key", "4567"], ["--pixel-budget-gb", 2]):
        with pytest.raises(ZeroDivisionError):
            decode(*other, *changed)


def test_the_data_package_does_not_import_torch():
    modules = [
        "pixels",
        "decode",
        "sampling",
        "manifest",
        "layouts",
        "verify",
        "fetch",
    ]
    code = "import sys\n" + "".join(f"import blocklora.data.{m}\n" for m in modules)
    code += (
        "print(sorted({'torch', 'torchvision', 'open_clip', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
