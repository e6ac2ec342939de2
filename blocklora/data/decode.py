"""Decoding images into the pixel stores that `blocklora.data.pixels` reads."""

import logging
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from blocklora.data.images import open_image, read_image
from blocklora.data.manifest import LabelledImage
from blocklora.data.pixels import pack_json
from blocklora.data.preprocess import evaluation_transform
from blocklora.errors import UserError
from blocklora.files import atomic_path

logger = logging.getLogger(__name__)

# Pillow keeps up to this many blocks of memory (of at most 16 MB each) for reuse. Otherwise, the
# system would clear fresh memory for every image, which takes as long as decoding a small one.
Image.core.set_blocks_max(8)

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_test_store(
    output: str | Path,
    image_root: str | Path,
    paths: Sequence[str],
    size: int,
    workers: int,
    budget: float,
) -> None:
    """Decode the images `paths` below `image_root` into a test store.

    The images become `size` pixels wide and high. They are decoded by `workers` threads, and only
    a few images per thread are in memory at a time. If the pixels would take more than `budget`
    bytes, the store lists the images instead, and they are decoded whenever they are needed.

    Raises:
        UserError: An image cannot be read, or there is no room for the store.
    """
    shape = (len(paths), size, size, 3)
    total = int(np.prod(shape, dtype=np.int64))
    with atomic_path(output) as temporary, temporary.open("wb") as stream:
        if not _fits(output, len(paths), total, budget):
            record = {"image_root": str(image_root), "size": size, "paths": list(paths)}
            np.save(stream, pack_json(record))
            return
        files = [Path(image_root, path) for path in paths]
        _write_header(stream, shape)
        decoded = ordered_map(lambda f: evaluation_transform(read_image(f), size), files, workers)
        for pixels in _progress(decoded, len(files)):
            stream.write(pixels.tobytes())


def write_shots_store(
    output: str | Path,
    image_root: str | Path,
    images: Sequence[LabelledImage],
    workers: int,
    budget: float,
) -> None:
    """Decode `images` below `image_root` at full resolution into a training store.

    See `write_test_store` for threads, memory, budget and errors.
    """
    files = [Path(image_root, image.path) for image in images]
    shapes = np.array(list(ordered_map(_header_shape, files, workers)), np.int64).reshape(-1, 2)
    sizes = shapes.prod(axis=1) * 3
    total = int(sizes.sum())
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_member(archive, "paths", pack_json([image.path for image in images]))
        _write_member(archive, "labels", np.array([i.label for i in images], np.int64))
        if not _fits(output, len(files), total, budget):
            _write_member(archive, "image_root", pack_json(str(image_root)))
            return
        _write_member(archive, "index", np.column_stack([sizes.cumsum() - sizes, shapes]))
        with archive.open(zipfile.ZipInfo("pixels.npy"), "w", force_zip64=True) as stream:
            _write_header(stream, (total,))
            decoded = ordered_map(lambda f: np.asarray(read_image(f)), files, workers)
            for pixels in _progress(decoded, len(files)):
                stream.write(pixels.data)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield the results of `function` for `items` in their order, computed by `workers` threads.

    Only a few results per thread wait in memory. An error of `function` is raised in its turn.
    Threads suffice because Pillow releases the interpreter lock while it decodes and resizes.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fits(output: str | Path, images: int, total: int, budget: float) -> bool:
    """Return whether `total` bytes are within the budget.

    Raises:
        UserError: They are, but the disk has no room for them. The message names `output`.
    """
    size, limit = f"{total / 1e9:.2f} GB", f"{budget / 1e9:.2f} GB"
    if total > budget:
        logger.info("%s: %d images would take %s, which is over the budget of %s, so they are "
                    "decoded on the fly", output, images, size, limit)  # fmt: skip
        return False
    logger.info("%s: %d images take %s (budget %s)", output, images, size, limit)
    free = shutil.disk_usage(Path(output).parent).free
    if total > free:
        raise UserError(
            f"{output}: needs {size}, but only {free / 1e9:.2f} GB are free; make room, or lower "
            "the pixel budget so that images are decoded on the fly"
        )
    return True


def _header_shape(path: Path) -> tuple[int, int]:
    """Return the height and width of an image according to its header."""
    with open_image(path) as image:
        return image.height, image.width


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file for a uint8 array of this shape."""
    description = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
    np.lib.format.write_array_header_1_0(
        stream, {"descr": description, "fortran_order": False, "shape": shape}
    )


def _write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    # ZipInfo has a fixed date, so the same images always give the same bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def _progress(decoded: Iterator[Result], total: int) -> Iterator[Result]:
    return tqdm(decoded, total=total, unit="image", desc="decode", disable=None)
