"""The registry of datasets, whose definitions are read from `registry/*.yaml`.

Each key of such a file is the name of a dataset, and `Entry` describes its definition.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from blocklora.errors import UserError
from blocklora.fields import Allowed, Checked, Count, Natural, described, one_of, text
from blocklora.yamlfiles import read_yaml

PACKAGED = Path(__file__).with_name("registry")
# This environment variable may name a folder of definitions to use instead of the packaged ones,
# for tests or for a site with mirrors of its own.
VARIABLE = "BLOCKLORA_REGISTRY"

# The fields that a dataset needs besides the required ones of `Entry`, by its layout.
PUBLISHED = ("template", "class_names", "trees", "downloads", "citation")
NEEDED_FIELDS = {
    "split_file": (*PUBLISHED, "split_file"),
    "aircraft": PUBLISHED,
    "imagenet": (*PUBLISHED, "classes_file"),
    "drawn": (),
}


def _matching(words: str, pattern: str) -> Any:
    return Annotated[str, Allowed(words, {"pattern": pattern})]


def _checked(kind: Any, words: str, is_right: Any) -> Any:
    """Return the type of the values for which the function `is_right` returns True."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise ValueError
        return value

    return Annotated[kind, Allowed(words, check=check)]


def _several(item: Any, words: str) -> Any:
    return _checked(tuple[item, ...], words, bool)


def _are_rules(rules: Any) -> bool:
    return isinstance(rules, str) or (
        isinstance(rules, dict) and bool(rules) and all(map(_are_rules, rules.values()))
    )


Images = _checked(
    dict[one_of("train", "val", "test"), Natural],
    "the numbers of images in train and test, at least 1, and in val, at least 0",
    lambda images: {"train", "val", "test"} == images.keys() and images["train"] * images["test"],
)


@dataclass(frozen=True)
class Address:
    """An address of a file: a URL, or `gdrive:` and the id of a file on Google Drive."""

    url: _matching("an address with http, https or gdrive", r"^(https?://|gdrive:)\S+$")
    status: one_of("live", "listed", "unknown", "dead") = "unknown"

    @property
    def link(self) -> str:
        """The address as a link to follow in a browser."""
        return self.url.replace("gdrive:", "https://drive.google.com/uc?id=")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download from the first of its addresses that works.

    Attributes:
        bytes: The expected size in bytes, or None if it is unknown.
        checksum: `sha256:`, `md5:` or `git-blob-sha1:`, followed by the digest. It is None if none
            has been published, and an archive is then verified by the images that the split needs.
        addresses: The addresses in the order in which they are tried.
    """

    name: _matching("the name of a file, without folders", "^[^/]+$")
    bytes: described(Count | None, "the size in bytes, or null if it is unknown")
    checksum: described(
        _matching("", "^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|git-blob-sha1:[0-9a-f]{40})$") | None,
        "sha256:, md5: or git-blob-sha1: and the digest, or null if none has been published",
    )
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Archive(RemoteFile):
    """An archive and where its members go; `blocklora/data/unpack.py` explains the rules."""

    unpack: _checked(
        dict[str, Any],
        "a mapping from members to paths, or to the rules of nested archives",
        _are_rules,
    )


@dataclass(frozen=True)
class Download:
    """Archives that together contain all images of a dataset."""

    archives: _several(Archive, "a list of archives")


@dataclass(frozen=True)
class Tree:
    """One way in which a dataset may be laid out below `data_root`.

    Attributes:
        convention: The project that uses this layout.
        folder: The folder below `data_root`.
        images: The folder below `folder` that image paths are relative to.
        needs: Paths below `folder` that exist in a complete tree.
    """

    convention: text("the name of a project")
    folder: text("a path below data_root")
    images: text("a path below folder")
    needs: _several(text("a path below folder"), "a list of paths below folder")


@dataclass(frozen=True, kw_only=True)
class Entry(Checked):
    """The definition of a dataset in a file of the registry.

    Attributes:
        layout: The source of each image's label and split: a split_zhou file, the official lists
            of FGVC-Aircraft, the folders of ImageNet, or an image folder that `blocklora.miniature`
            draws.
        images: The expected numbers of images. If `val` is 0, validation shots are drawn from
            `train`.
        template: A prompt tailored to the dataset, with one `{}` for the class name.
        class_names: The origin of the class names, for people.
        classes_file: A file beside the definition with the folder and name of each class.
        same_names: Groups of labels that are known to share a class name.
        trees: Known layouts of the unpacked images; downloads are unpacked into the first one.
        downloads: Alternatives in the order in which they are tried.
        gated: Instructions for getting the archives if they cannot simply be downloaded.
    """

    layout: one_of(*NEEDED_FIELDS)
    display_name: text("the name of the dataset in tables")
    classes: Annotated[int, Allowed("a whole number of at least 2", {"ge": 2})]
    images: Images
    licence: text("the licence in words")
    template: _matching("a text with one {} for the class name", r"^[^{}]*\{\}[^{}]*$") = ""
    class_names: text("the origin of the class names") = ""
    classes_file: text("the name of a file beside this one") = ""
    same_names: tuple[
        _checked(tuple[Natural, ...], "two or more labels", lambda labels: len(labels) > 1), ...
    ] = ()
    trees: tuple[Tree, ...] = ()
    split_file: described(RemoteFile, "the split file") = None
    downloads: tuple[Download, ...] = ()
    gated: text("instructions for getting the archives") = ""
    citation: text("a reference") = ""

    def faults(self) -> Iterator[str]:
        """Yield a line for each missing field and for fields that do not fit together."""
        for name in NEEDED_FIELDS[self.layout]:
            if not getattr(self, name):
                yield f"{name}: missing; the layout {self.layout} needs it"
        if self.layout == "drawn" and (self.trees or self.downloads):
            yield "layout: a drawn dataset has no trees and no downloads"


@dataclass(frozen=True, kw_only=True)
class Dataset(Entry):
    """A dataset of the registry.

    Attributes:
        name: The dataset's key in the file that defines it.
        registry: The folder of that file.
    """

    name: str
    registry: Path

    def packaged_split(self) -> Path:
        """Return the path that a compressed copy of the split file has in the registry."""
        return self.registry / "splits" / f"{self.split_file.name}.xz"


Definitions = Annotated[
    dict[_matching("a name of small letters, digits and _", "^[a-z][a-z0-9_]*$"), Entry],
    Allowed("a mapping from names of datasets to their definitions"),
]


def load_registry(folder: Path | None = None) -> dict[str, Dataset]:
    """Return all dataset definitions of a folder by name.

    Without a folder, definitions come from the one that the environment variable
    `BLOCKLORA_REGISTRY` names, or else from the package.

    Raises:
        UserError: There are no files, or they have faults, which the message lists one per line.
    """
    from blocklora.validation import validated

    folder = folder or Path(os.environ.get(VARIABLE) or PACKAGED)
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: no dataset definitions (*.yaml) in it")
    datasets: dict[str, Dataset] = {}
    faults = []
    for path in files:
        try:
            entries = validated(Definitions, read_yaml(path), path)
        except UserError as error:
            faults.append(str(error))
            continue
        for name in entries.keys() & datasets.keys():
            faults.append(f"{path}: dataset {name} is already defined in {folder}")
        for name, entry in entries.items():
            datasets[name] = Dataset(name=name, registry=folder, **vars(entry))
    if faults:
        raise UserError("\n".join(faults))
    return datasets
