"""Reading the two kinds of files with decoded images, called pixel stores.

A **test store**, `test-<size>px.npy`, holds the test images of a manifest in its order, after
`evaluation_transform`, as one uncompressed RGB array, uint8 (images, size, size, 3).

A **training store**, `seed<s>.npz`, holds the training images of a shots list in the order of
drawing, at full resolution. It is an uncompressed zip file of

- `pixels.npy`, uint8 (bytes): the RGB pixels (height, width, 3) of all images one after the other,
- `index.npy`, int64 (images, 3): offset into `pixels`, height and width,
- `labels.npy`, int64 (images,),
- `paths.npy`, uint8: the image paths as UTF-8 JSON, relative to the image root.

`pixels` is memory-mapped inside the zip file, which works because members are not compressed.

If the pixels are **over the pixel budget**, a store only lists the paths of the images. They are
then decoded on the fly, and the objects that are returned here behave in the same way. The array in
the `.npy` file is then one-dimensional uint8, the UTF-8 JSON of `{"image_root", "size", "paths"}`.
The `.npz` file has `image_root.npy` (UTF-8 JSON) instead of `pixels` and `index`.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from blocklora.data.images import read_image
from blocklora.data.preprocess import evaluation_transform
from blocklora.errors import UserError


class LazyPixels:
    """Images that are preprocessed when they are indexed, like uint8 (images, size, size, 3).

    Indexing prepares images with `workers` threads. `image` returns the image with a given index;
    its errors are raised by indexing.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, image: Callable[[int], Image.Image], count: int, size: int, workers: int = 1
    ) -> None:
        self._image, self._workers = image, workers
        self.shape = (count, size, size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        if chosen.ndim == 0:
            return self._prepare(int(chosen))
        with ThreadPoolExecutor(self._workers) as pool:
            images = list(pool.map(self._prepare, chosen.tolist()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def _prepare(self, index: int) -> np.ndarray:
        return evaluation_transform(self._image(index), self.shape[1])


@dataclass(frozen=True)
class ShotImages:
    """The training images of a shots list at full resolution.

    Attributes:
        paths: Paths relative to the image root, in the order of drawing.
        labels: The labels, int64 (images,).
        image: A function that returns the image with a given index as RGB, uint8 (height, width,
            3). The array may be read-only.
    """

    paths: Sequence[str]
    labels: np.ndarray
    image: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)


def open_test_pixels(path: str | Path, workers: int = 1) -> np.ndarray | LazyPixels:
    """Open a test store as a read-only memory map, or as `LazyPixels` with `workers` threads.

    Indexing the latter raises `UserError` if an image cannot be read.

    Raises:
        UserError: The file is missing, cut short or not a test store.
    """
    try:
        pixels = np.lib.format.open_memmap(path, mode="r")
        if pixels.ndim == 1:
            record = unpack_json(pixels)
            files = [Path(record["image_root"], path) for path in record["paths"]]
            return LazyPixels(lambda i: read_image(files[i]), len(files), record["size"], workers)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"holds {pixels.dtype} {pixels.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _not_a_store(path, error) from None
    return pixels


def open_shot_images(path: str | Path) -> ShotImages:
    """Open a training store, whose images are memory-mapped or decoded on the fly.

    Raises:
        UserError: The file is missing, cut short or not a training store.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            paths, labels = unpack_json(arrays["paths"]), arrays["labels"]
            if "image_root" in arrays:
                root = Path(unpack_json(arrays["image_root"]))
                return ShotImages(paths, labels, lambda i: np.asarray(read_image(root / paths[i])))
            index = arrays["index"]
        pixels = _map_member(path, "pixels.npy")
        total = 3 * int((index[:, 1] * index[:, 2]).sum())
        if len({len(paths), len(labels), len(index)}) != 1 or len(pixels) != total:
            raise ValueError("its parts do not fit together")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise _not_a_store(path, error) from None

    def stored(number: int) -> np.ndarray:
        offset, height, width = index[number].tolist()
        return pixels[offset : offset + height * width * 3].reshape(height, width, 3)

    return ShotImages(paths, labels, stored)


def training_pixels(images: ShotImages, size: int, workers: int) -> LazyPixels:
    """Return training images, uint8 (images, size, size, 3), preprocessed like test images.

    `workers` threads prepare them when they are indexed, which raises `UserError` if an image
    cannot be read.
    """
    return LazyPixels(lambda i: Image.fromarray(images.image(i)), len(images), size, workers)


def pack_json(value: object) -> np.ndarray:
    """Return the JSON of `value` as uint8 (bytes,), which NumPy can load without unpickling."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def unpack_json(array: np.ndarray) -> object:
    """Return the value packed by `pack_json`."""
    return json.loads(array.tobytes())


def _map_member(path: str | Path, name: str) -> np.ndarray:
    """Return an uncompressed one-dimensional uint8 array in a zip file as a memory map.

    Raises:
        KeyError: The zip file has no member of that name.
        ValueError: The member is compressed, cut short or another array.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with Path(path).open("rb") as stream:
        # The local file header has 30 bytes, then a name and an extra field, whose lengths are
        # at bytes 26 and 28.
        lengths = np.fromfile(stream, "<u2", 2, offset=info.header_offset + 26)
        start = info.header_offset + 30 + int(lengths.sum())
        stream.seek(start)
        np.lib.format.read_magic(stream)
        (length,), _, dtype = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
    if dtype != np.uint8 or offset - start + length != info.file_size:
        raise ValueError(f"{name} is not a whole uint8 array")
    if not length:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r", offset=offset, shape=(length,))


def _not_a_store(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file; make it with `blocklora decode-images`")
    return UserError(
        f"{path}: not a whole pixel store ({error}); delete it and make it again with "
        "`blocklora decode-images`"
    )
