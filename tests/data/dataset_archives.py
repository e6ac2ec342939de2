"""Small copies of the eleven datasets: archives with the real layout, and a registry for them.

The layouts are written down here a second time, independently of the registry's rules: for every
archive, where each image lies in it (MaxZanella/CLIP-LoRA@358f0d7 and KaiyangZhou/CoOp@ff61507,
DATASETS.md; the archives' own trees).
"""

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from copy import deepcopy
from functools import cache

import yaml
from PIL import Image

from blocklora.data.registry import PACKAGED
from blocklora.yamlfiles import read_yaml

PER_CLASS = {"train": 3, "val": 2, "test": 2}
CLASSES = 3

# Archive -> (kind, pattern of a member of it), by dataset, in the registry's order of
# alternatives. {0} is the image path as the split has it.
LAYOUTS = {
    "sun397": [
        {"SUN397.tar.gz": "SUN397/{0}"},
        {"sun397.zip": "sun397/SUN397/{0}"},
    ],
    "fgvc_aircraft": [
        {"fgvc-aircraft-2013b.tar.gz": "fgvc-aircraft-2013b/data/{0}"},
        {"fgvc_aircraft.zip": "fgvc_aircraft/{0}"},
    ],
    "eurosat": [{"EuroSAT.zip": "2750/{0}"}, {"EuroSAT_RGB.zip": "EuroSAT_RGB/{0}"}],
    "stanford_cars": [
        {"stanford_cars.zip": "stanford_cars/{0}"},
        {"cars_train.tgz": "{0}", "cars_test.tgz": "{0}"},
    ],
    "food101": [{"food-101.tar.gz": "food-101/images/{0}"}],
    "oxford_pets": [{"images.tar.gz": "images/{0}"}, {"oxford_pets.zip": "oxford_pets/images/{0}"}],
    "oxford_flowers": [
        {"102flowers.tgz": "jpg/{0}"},
        {"oxford_flowers.zip": "oxford_flowers/jpg/{0}"},
    ],
    "caltech101": [
        {"caltech-101.zip": "101_ObjectCategories/{0}"},
        {"101_ObjectCategories.tar.gz": "101_ObjectCategories/{0}"},
    ],
    "dtd": [{"dtd-r1.0.1.tar.gz": "dtd/images/{0}"}, {"dtd.zip": "dtd/images/{0}"}],
    "ucf101": [
        {"ucf101.zip": "ucf101/UCF-101-midframes/{0}"},
        {"UCF-101-midframes.zip": "UCF-101-midframes/{0}"},
    ],
}
# What else lies in an archive, next to the images.
CLUTTER = {
    "food-101.tar.gz": ["food-101/meta/train.txt", "food-101/license_agreement.txt"],
    "dtd-r1.0.1.tar.gz": ["dtd/imdb/imdb.mat", "dtd/labels/test1.txt"],
    "caltech-101.zip": ["__MACOSX/._caltech-101", "caltech-101/show_annotation.m"],
    "fgvc-aircraft-2013b.tar.gz": ["fgvc-aircraft-2013b/README"],
}
CASES = [(name, index) for name, groups in LAYOUTS.items() for index in range(len(groups))]


def picture(seed: str) -> bytes:
    """Return a small JPEG that no other seed gives."""
    value = hashlib.sha256(seed.encode()).digest()
    stream = io.BytesIO()
    Image.frombytes("RGB", (9, 8), (value * 7)[:216]).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@cache
def packaged_entries() -> dict[str, dict]:
    """Return the packaged definitions of the datasets, which nobody may change."""
    return read_yaml(PACKAGED / "paper.yaml")


@cache
def split_lists(dataset: str) -> dict[str, list]:
    """Return a small split: from the published file where it is packaged, else in its manner."""
    packaged = PACKAGED / "splits" / f"{packaged_entries()[dataset]['split_file']['name']}.xz"
    if not packaged.exists():
        folders = {"sun397": ["a/abbey", "b/bow_window/indoor", "z/zoo"], "food101": list("abc")}
        return {
            split: [
                [f"{folder}/{split}_{i}.jpg", label, folder]
                for label, folder in enumerate(folders[dataset])
                for i in range(count)
            ]
            for split, count in PER_CLASS.items()
        }
    published = json.loads(lzma.decompress(packaged.read_bytes()))
    labels = list(dict.fromkeys(label for _, label, _ in published["train"]))[:CLASSES]
    return {
        split: [
            [path, labels.index(label), name]
            for wanted in labels
            for path, label, name in [row for row in published[split] if row[1] == wanted][:count]
        ]
        for split, count in PER_CLASS.items()
    }


def aircraft_files() -> dict[str, bytes]:
    """Return the images and lists of a small FGVC-Aircraft, by path in its `data` folder."""
    variants = ["707-320", "F-16A/B", "DHC-8-100"]
    files = {"variants.txt": "\n".join(variants).encode() + b"\n"}
    number = 34309
    for split, count in PER_CLASS.items():
        lines = []
        for variant in variants:
            for _ in range(count):
                files[f"images/{number:07d}.jpg"] = picture(f"aircraft {number}")
                lines.append(f"{number:07d} {variant}\n")
                number += 1
        files[f"images_variant_{split}.txt"] = "".join(lines).encode()
    return files


def dataset_files(dataset: str) -> dict[str, bytes]:
    """Return the content of every image, by path below the image root."""
    if dataset == "fgvc_aircraft":
        return aircraft_files()
    lists = split_lists(dataset)
    return {row[0]: picture(f"{dataset} {row[0]}") for rows in lists.values() for row in rows}


def pack(name: str, members: dict[str, bytes]) -> bytes:
    """Return a zip, tar or gzipped tar, by the suffix of `name`; always the same bytes."""
    stream = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            for path, content in members.items():
                archive.writestr(zipfile.ZipInfo(path), content)
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue() if name.endswith(".tar") else gzip.compress(stream.getvalue(), mtime=0)


def archives(dataset: str, alternative: int) -> dict[str, bytes]:
    """Return the archives of one alternative of a dataset, by name."""
    files = dataset_files(dataset)
    packed = {}
    for name, pattern in LAYOUTS[dataset][alternative].items():
        part = name.removesuffix(".tgz") if dataset == "stanford_cars" and "tgz" in name else ""
        members = {pattern.format(p): c for p, c in files.items() if p.startswith(part)}
        if name == "caltech-101.zip":
            inner = pack("101_ObjectCategories.tar.gz", members)
            members = {"caltech-101/101_ObjectCategories.tar.gz": inner}
        members |= dict.fromkeys(CLUTTER.get(name, ()), b"clutter")
        packed[name] = pack(name, members)
    return packed


def write_registry(folder, dataset: str, serve) -> None:
    """Write the definition of one small dataset: the packaged entry with other numbers.

    `serve(name, content)` returns an address for a file, or None for a file that is nowhere.
    """
    entry = deepcopy(packaged_entries()[dataset])
    entry["classes"] = CLASSES
    entry["images"] = {split: CLASSES * count for split, count in PER_CLASS.items()}
    entry.pop("same_names", None)
    if "split_file" in entry:
        content = json.dumps(split_lists(dataset)).encode()
        _fill(entry["split_file"], content, serve)
    for index, download in enumerate(entry["downloads"]):
        packed = archives(dataset, index)
        for archive in download["archives"]:
            _fill(archive, packed[archive["name"]], serve)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({dataset: entry}, allow_unicode=True)
    (folder / f"{dataset}.yaml").write_text(text, encoding="utf-8")


def _fill(file: dict, content: bytes, serve) -> None:
    address = serve(file["name"], content)
    file["addresses"] = [{"url": address, "status": "live"}] if address else []
    if file["checksum"]:
        file["bytes"] = len(content)
        file["checksum"] = f"sha256:{hashlib.sha256(content).hexdigest()}"
