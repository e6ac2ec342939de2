"""Measure the data side at ImageNet's size; run by hand, not by pytest.

python tests/data/benchmark_data.py manifest FOLDER   1.33 million empty files -> manifest
python tests/data/benchmark_data.py decode FOLDER     decoding against a plain loop

FOLDER is created and may be deleted afterwards. Prints seconds, memory and rates.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from blocklora.data.decode import write_shots_store, write_test_store
from blocklora.data.imagenet import read_classes
from blocklora.data.manifest import LabelledImage
from blocklora.data.pixels import evaluation_transform, read_image
from blocklora.data.registry import PACKAGED
from blocklora.data.source import Source, write_source

TRAIN, TEST = 1_281_167, 50_000


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
    """Time `blocklora make-manifest` on a tree of ImageNet's size, and its memory."""
    root = folder / "images"
    if not root.exists():
        make_placeholders(root)
    write_source(folder / "source.json", Source("imagenet", str(root), None, "existing"))
    command = [sys.executable, "-c", "from blocklora.cli import main; main()", "make-manifest"]
    command += ["--source", str(folder / "source.json"), "--output", str(folder / "m.csv")]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    lines = sum(1 for _ in (folder / "m.csv").open(encoding="utf-8"))
    print(f"manifest: {lines - 1} images, {seconds:.1f} s, peak {peak:.2f} GB")


def measure_decoding(folder: Path, images: int = 400) -> None:
    """Compare the stores' writers with a plain loop over the same decoder and resizer."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [f"{number}.jpg" for number in range(images)]
    for path in paths:
        small = rng.integers(0, 256, (38, 50, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(folder / path)
    rows = [LabelledImage(path, 0, "x", "train") for path in paths]

    def plain_test() -> None:
        for path in paths:
            evaluation_transform(read_image(folder / path), 224)

    def plain_shots() -> None:
        for path in paths:
            np.asarray(read_image(folder / path))

    print(f"plain loop, 224 px: {images / _seconds(plain_test):.0f} images/s")
    for workers in (1, os.cpu_count()):
        seconds = _seconds(
            lambda n=workers: write_test_store(folder / "t.npy", folder, paths, 224, n, 1e12)
        )
        print(f"test store, {workers} workers: {images / seconds:.0f} images/s")
    print(f"plain loop, full size: {images / _seconds(plain_shots):.0f} images/s")
    for workers in (1, os.cpu_count()):
        seconds = _seconds(
            lambda n=workers: write_shots_store(folder / "t.npz", folder, rows, n, 1e12)
        )
        print(f"training store, {workers} workers: {images / seconds:.0f} images/s")


def _seconds(function) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    measure = {"manifest": measure_manifest, "decode": measure_decoding}
    measure[sys.argv[1]](Path(sys.argv[2]))
