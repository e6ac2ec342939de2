"""Dataset definitions as data: `registry/*.yaml`, checked against `registry/schema.json`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.fields import from_values
from blocklora.files import read_json
from blocklora.yamlfiles import read_yaml

PACKAGED = Path(__file__).with_name("registry")
# Names a folder of definitions to use instead of the packaged ones: other addresses, for tests
# or for a site with mirrors of its own.
VARIABLE = "BLOCKLORA_REGISTRY"


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        bytes: expected size, or None if unknown.
        checksum: `sha256:`, `md5:` or `git-blob-sha1:` and the digest, or None if unknown.
        addresses: in the order they are tried; `gdrive:` and an id for Google Drive.
    """

    name: str
    bytes: int | None
    checksum: str | None
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Archive(RemoteFile):
    """An archive and where its members go; see `blocklora.data.unpack`."""

    unpack: dict[str, Any]


@dataclass(frozen=True)
class Tree:
    """One layout of a dataset below `data_root`: `images` and `needs` are paths below `folder`."""

    convention: str
    folder: str
    images: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """One entry of the registry; the fields are described in `registry/schema.json`.

    Attributes:
        registry: folder the entry was read from.
        downloads: alternatives, each a tuple of archives that together yield all images.
        template: prompt tailored to the dataset with one `{}`, or None for drawn datasets.
    """

    name: str
    registry: Path
    display_name: str
    layout: str
    classes: int
    images: dict[str, int]
    licence: str
    template: str | None = None
    class_names: str | None = None
    classes_file: str | None = None
    same_names: tuple[tuple[int, ...], ...] = ()
    trees: tuple[Tree, ...] = ()
    split_file: RemoteFile | None = None
    downloads: tuple[tuple[Archive, ...], ...] = ()
    gated: str | None = None
    citation: str | None = None

    def packaged_split(self) -> Path:
        """Return where a copy of the split file would be in the registry, compressed."""
        return self.registry / "splits" / f"{self.split_file.name}.xz"


def readable(address: str) -> str:
    """Return an address as a link to follow by hand."""
    return address.replace("gdrive:", "https://drive.google.com/uc?id=")


def load_registry(folder: Path | None = None) -> dict[str, Dataset]:
    """Return all dataset definitions of a folder, by name.

    Without a folder it is that named by the environment variable `BLOCKLORA_REGISTRY`, or the
    packaged one.

    Raises:
        UserError: a file is not valid, or a name is defined twice.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    folder = folder or Path(os.environ.get(VARIABLE) or PACKAGED)
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: no dataset definitions (*.yaml) in it")
    validator = Draft202012Validator(read_json(PACKAGED / "schema.json"))
    datasets: dict[str, Dataset] = {}
    for path in files:
        entries = read_yaml(path)
        if error := best_match(validator.iter_errors(entries)):
            raise UserError(f"{path}: {error.json_path}: {error.message}")
        for name, entry in entries.items():
            if name in datasets:
                raise UserError(f"{path}: dataset {name} is already defined in {folder}")
            datasets[name] = _dataset(name, folder, entry)
    return datasets


def _dataset(name: str, folder: Path, entry: dict[str, Any]) -> Dataset:
    made = {
        "same_names": tuple(map(tuple, entry.get("same_names", ()))),
        "trees": tuple(from_values(Tree, tree) for tree in entry.get("trees", ())),
        "downloads": tuple(
            tuple(_remote(Archive, archive) for archive in download["archives"])
            for download in entry.get("downloads", ())
        ),
    }
    if "split_file" in entry:
        made["split_file"] = _remote(RemoteFile, entry["split_file"])
    return Dataset(name=name, registry=folder, **entry | made)


def _remote(kind: type[RemoteFile], entry: dict[str, Any]) -> RemoteFile:
    return kind(**entry | {"addresses": tuple(address["url"] for address in entry["addresses"])})
