"""The registry of datasets: what is known about each, read from `registry/*.yaml`.

Each key of such a file is the name of a dataset. `Entry` lists what may be said about it.
"""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from blocklora.errors import UserError
from blocklora.yamlfiles import explain_fault, read_yaml

PACKAGED = Path(__file__).with_name("registry")
# This environment variable may name a folder of definitions to use instead of the packaged ones,
# for tests or for a site with mirrors of its own.
VARIABLE = "BLOCKLORA_REGISTRY"

# Validators are built when the first file is read, one for all types instead of one for each.
LATER = ConfigDict(defer_build=True)
STRICT = ConfigDict(strict=True, extra="forbid", validate_default=True, **LATER)
# What a dataset needs beside the required fields of `Entry`, by its layout.
PUBLISHED = ("template", "class_names", "trees", "citation")
NEEDED_FIELDS = {
    "split_file": (*PUBLISHED, "split_file"),
    "aircraft": PUBLISHED,
    "imagenet": (*PUBLISHED, "classes_file"),
    "drawn": (),
}


def _check_rules(rules: dict[str, Any]) -> dict[str, Any]:
    for target in rules.values():
        if isinstance(target, dict) and target:
            _check_rules(target)
        elif not isinstance(target, str):
            raise ValueError("every target must be a path, or the rules of a nested archive")
    return rules


Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Checksum = Annotated[
    str, Field(pattern="^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|git-blob-sha1:[0-9a-f]{40})$")
]
Rules = Annotated[dict[str, Any], Field(min_length=1), AfterValidator(_check_rules)]


class Images(TypedDict):
    """Expected numbers of images; without `val`, validation shots are drawn from `train`."""

    __pydantic_config__ = STRICT

    train: Count
    val: Natural
    test: Count


@dataclass(frozen=True, config=STRICT)
class Address:
    """An address of a file: a URL, or `gdrive:` and the id of a file on Google Drive."""

    url: Annotated[str, Field(pattern=r"^(https?://|gdrive:)\S+$")]
    status: Literal["live", "listed", "unknown", "dead"] = "unknown"

    @property
    def link(self) -> str:
        """The address as a link to follow in a browser."""
        return self.url.replace("gdrive:", "https://drive.google.com/uc?id=")


@dataclass(frozen=True, config=STRICT)
class RemoteFile:
    """A file to download from the first of its addresses that works.

    Attributes:
        bytes: The expected size, or None if it is unknown.
        checksum: `sha256:`, `md5:` or `git-blob-sha1:` and the digest. None if none has been
            published; an archive is then verified by the images that the split needs.
    """

    name: Annotated[str, Field(pattern="^[^/]+$")]
    bytes: Count | None
    checksum: Checksum | None
    addresses: tuple[Address, ...]


@dataclass(frozen=True, config=STRICT)
class Archive(RemoteFile):
    """An archive and where its members go; `blocklora/data/unpack.py` explains the rules."""

    unpack: Rules


@dataclass(frozen=True, config=STRICT)
class Download:
    """Archives that together contain all images of a dataset."""

    archives: Annotated[tuple[Archive, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Tree:
    """One way in which a dataset may be laid out below `data_root`.

    Attributes:
        convention: The project that uses this layout.
        folder: The folder below `data_root`.
        images: The folder below `folder` that image paths are relative to.
        needs: Paths below `folder` that exist in a complete tree.
    """

    convention: str
    folder: str
    images: str
    needs: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Entry:
    """The definition of a dataset in a file of the registry.

    Attributes:
        layout: What tells the label and split of each image: a split_zhou file, the official lists
            of FGVC-Aircraft, the folders of ImageNet, or an image folder that `blocklora.miniature`
            draws.
        template: A prompt tailored to the dataset, with one `{}` for the class name.
        class_names: Where the class names come from, for people.
        classes_file: A file beside the definition with the folder and name of each class.
        same_names: Groups of labels that are known to share a class name.
        trees: Known layouts of the unpacked images; downloads are unpacked into the first one.
        downloads: Alternatives in the order in which they are tried.
        gated: What users have to do to get the archives, if they cannot simply be downloaded.
    """

    layout: Literal["split_file", "aircraft", "imagenet", "drawn"]
    display_name: Text
    classes: Annotated[int, Field(ge=2)]
    images: Images
    licence: Text
    template: Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")] | None = None
    class_names: str | None = None
    classes_file: str | None = None
    same_names: tuple[Annotated[tuple[Natural, ...], Field(min_length=2)], ...] = ()
    trees: tuple[Tree, ...] = ()
    split_file: RemoteFile | None = None
    downloads: tuple[Download, ...] = ()
    gated: str | None = None
    citation: str | None = None

    @field_validator("*")
    @classmethod
    def _fits_the_layout(cls, value: Any, info: ValidationInfo) -> Any:
        layout = info.data.get("layout")
        if not value and info.field_name in NEEDED_FIELDS.get(layout, ()):
            raise PydanticCustomError("missing", f"the layout {layout} needs it")
        if value and layout == "drawn" and info.field_name in ("trees", "downloads"):
            raise ValueError("drawn datasets cannot have it")
        return value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Dataset(Entry):
    """A dataset of the registry.

    Attributes:
        name: Its key in the file.
        registry: The folder of the file.
    """

    name: str
    registry: Path

    def packaged_split(self) -> Path:
        """Return the path that a compressed copy of the split file has in the registry."""
        return self.registry / "splits" / f"{self.split_file.name}.xz"


Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
FILE = TypeAdapter(dict[Name, Entry], config=LATER)
# The types of mappings inside an entry, by the key that leads to them.
PARTS = {
    "trees": Tree,
    "split_file": RemoteFile,
    "downloads": Download,
    "archives": Archive,
    "addresses": Address,
}


def load_registry(folder: Path | None = None) -> dict[str, Dataset]:
    """Return all dataset definitions of a folder by name.

    Without a folder, definitions come from the one that the environment variable
    `BLOCKLORA_REGISTRY` names, or else from the package.

    Raises:
        UserError: There are no files, or they have faults, which are listed one a line.
    """
    folder = folder or Path(os.environ.get(VARIABLE) or PACKAGED)
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: no dataset definitions (*.yaml) in it")
    datasets: dict[str, Dataset] = {}
    faults = []
    for path in files:
        try:
            # JSON has lists alone, which the strict validator then takes for tuples.
            entries = FILE.validate_json(json.dumps(read_yaml(path)))
        except ValidationError as error:
            faults += [
                f"{path}: {explain_fault(fault, _keys)}"
                for fault in error.errors()
                # A list whose items have faults of their own is not too short.
                if fault["type"] != "too_short" or len(fault["input"]) < fault["ctx"]["min_length"]
            ]
            continue
        for name in entries.keys() & datasets.keys():
            faults.append(f"{path}: dataset {name} is already defined in {folder}")
        for name, entry in entries.items():
            datasets[name] = Dataset(name=name, registry=folder, **vars(entry))
    if faults:
        raise UserError("\n".join(faults))
    return datasets


def _keys(place: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the mapping at a place in a file may have."""
    if place[1:] == ("images",):
        return list(Images.__annotations__)
    part = next((PARTS[key] for key in reversed(place[1:]) if key in PARTS), Entry)
    return [field.name for field in fields(part)]
