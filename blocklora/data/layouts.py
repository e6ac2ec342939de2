"""Listing the images of a dataset, whatever its layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from blocklora.data.imagenet import read_classes, scan_imagenet
from blocklora.data.manifest import LabelledImage
from blocklora.data.registry import Dataset
from blocklora.data.source import Source
from blocklora.data.splits import (
    read_aircraft_lists,
    read_csv_split,
    read_split_file,
    scan_image_folder,
)
from blocklora.errors import UserError


def list_images(source: Source, registry: Mapping[str, Dataset]) -> Iterator[LabelledImage]:
    """Yield the images of a dataset in manifest order: training, validation, test.

    Raises:
        UserError: A file or folder of the dataset is missing or has a fault.
    """
    root, split_file = Path(source.image_root), source.split_file
    if source.origin == "user":
        yield from read_csv_split(split_file) if split_file else scan_image_folder(root)
        return
    if source.dataset not in registry:
        raise UserError(
            f"{source.dataset}: the registry has no such dataset; if the environment variable "
            "BLOCKLORA_REGISTRY names another registry, correct it"
        )
    dataset = registry[source.dataset]
    match dataset.layout:
        case "split_file":
            yield from read_split_file(split_file)
        case "aircraft":
            yield from read_aircraft_lists(root)
        case "imagenet":
            classes = read_classes(dataset.registry / dataset.classes_file)
            yield from scan_imagenet(root, classes, Path(split_file) if split_file else None)
        case "drawn":
            yield from scan_image_folder(root)
