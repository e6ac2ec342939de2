"""Measure the data side at ImageNet's size; run by hand, not by pytest.

python tests/data/benchmark_data.py manifest FOLDER   1.33 million empty files -> manifest,
                                                      and lists of the other datasets' sizes
python tests/data/benchmark_data.py decode FOLDER     decoding against a plain loop

FOLDER is created and may be deleted afterwards. Prints seconds, memory and rates.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from blocklora.data.decode import write_shots_store, write_test_store
from blocklora.data.imagenet import read_classes
from blocklora.data.manifest import LabelledImage
from blocklora.data.registry import PACKAGED, Dataset, load_registry
from blocklora.data.source import Source, write_source

TRAIN, TEST = 1_281_167, 50_000
ROUNDS = 7  # after one that warms up; medians are printed


def make_placeholders(root: Path) -> None:
    """Create ImageNet's folders with empty files of its names, spread evenly over the classes."""
    wnids = list(read_classes(PACKAGED / "imagenet_classes.txt"))
    for label, wnid in enumerate(tqdm(wnids, desc="placeholders")):
        for split, total in (("train", TRAIN), ("val", TEST)):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            count = total // 1000 + (label < total % 1000)
            for number in range(count):
                name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                os.close(os.open(folder / f"{name}.JPEG", os.O_CREAT))


def measure_manifest(folder: Path) -> None:
    """Time `blocklora make-manifest` on data of the sizes of all datasets of the paper."""
    root = folder / "images"
    if not root.exists():
        make_placeholders(root)
    _time_manifest(folder, Source("imagenet", str(root), None, "existing"))
    for dataset in load_registry(PACKAGED).values():
        if dataset.layout == "split_file":
            path = folder / "split.json"
            path.write_text(json.dumps(_lists(dataset)))
            _time_manifest(folder, Source(dataset.name, str(root), str(path), "existing"))
        elif dataset.layout == "aircraft":
            _write_variants(folder, _lists(dataset))
            _time_manifest(folder, Source(dataset.name, str(folder), None, "existing"))


def _lists(dataset: Dataset) -> dict[str, list[tuple[str, int, str]]]:
    """Return as many images as the dataset has, spread evenly, in the form of a split file."""
    return {
        split: [
            (
                f"{split}/{number:07d}.jpg",
                number % dataset.classes,
                f"class {number % dataset.classes}",
            )
            for number in range(count)
        ]
        for split, count in dataset.images.items()
    }


def _write_variants(folder: Path, lists: dict[str, list[tuple[str, int, str]]]) -> None:
    names = sorted({name for rows in lists.values() for _, _, name in rows})
    (folder / "variants.txt").write_text("\n".join(names))
    for split, rows in lists.items():
        lines = [f"{Path(path).stem} {name}" for path, _, name in rows]
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines))


def _time_manifest(folder: Path, source: Source) -> None:
    """Print the time of making a manifest, start of the process included, and its memory."""
    write_source(folder / "source.json", source)
    command = [sys.executable, "-c", "from blocklora.cli import main; main()", "make-manifest"]
    command += ["--source", str(folder / "source.json"), "--output", str(folder / "m.csv")]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    lines = sum(1 for _ in (folder / "m.csv").open(encoding="utf-8"))
    print(f"{source.dataset}: {lines - 1} images, {seconds:.2f} s, peak so far {peak:.2f} GB")


def measure_decoding(folder: Path, images: int = 400) -> None:
    """Compare the writers of the stores with a plain loop over Pillow's decoder and resizer.

    The loop has Pillow as it comes, without the kept blocks of the writers, and writes nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [f"{number}.jpg" for number in range(images)]
    for path in paths:
        small = rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(folder / path)
    rows = [LabelledImage(path, 0, "x", "train") for path in paths]

    def plain_test() -> None:
        for path in paths:
            with Image.open(folder / path) as image:
                resized = image.convert("RGB").resize((298, 224), Image.Resampling.BICUBIC)
                np.asarray(resized.crop((37, 0, 261, 224)))

    def plain_shots() -> None:
        for path in paths:
            with Image.open(folder / path) as image:
                np.asarray(image.convert("RGB"))

    def test_store(workers: int) -> None:
        write_test_store(folder / "t.npy", folder, paths, 224, workers, 1e12)

    def shots_store(workers: int) -> None:
        write_shots_store(folder / "t.npz", folder, rows, workers, 1e12)

    _compare("test images, 224 px", images, plain_test, test_store)
    _compare("training images, full size", images, plain_shots, shots_store)


def _compare(
    what: str, images: int, plain: Callable[[], None], store: Callable[[int], None]
) -> None:
    """Print the rate of a plain loop and of a store's writer with 1, 2, ... threads."""
    kept = Image.core.get_blocks_max()

    def plain_as_it_comes() -> None:
        Image.core.set_blocks_max(0)
        plain()
        Image.core.set_blocks_max(kept)

    functions = {"plain loop": plain_as_it_comes}
    for workers in (1, 2, 4, 8):
        if workers <= os.cpu_count():
            functions[f"store, {workers} threads"] = partial(store, workers)
    times = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):  # in turns, so that all see the same machine
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    for name, seconds in medians.items():
        ratio = medians["plain loop"] / seconds
        print(f"{what}: {name}: {images / seconds:.0f} images/s, {ratio:.2f} of the plain loop")


if __name__ == "__main__":
    measure = {"manifest": measure_manifest, "decode": measure_decoding}
    measure[sys.argv[1]](Path(sys.argv[2]))
