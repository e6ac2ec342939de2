"""Published accuracies, and the names that tables and figures print.

`reference/published_results.csv` holds what papers and repositories report, with the source of
each value. If the CLIP-LoRA paper (arXiv 2405.18541, Tables 3 to 5) has a method, the plain name
stands for the values there, and a suffix in brackets marks values of the method from another
source. Methods that this paper does not have keep their plain names.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from blocklora.data.registry import load_registry
from blocklora.study.study import Study

REFERENCE = Path(__file__).parent / "reference"
AVERAGE = "average"


@cache
def names() -> Mapping[str, Any]:
    """Return the content of `reference/names.yaml`."""
    return yaml.safe_load((REFERENCE / "names.yaml").read_text(encoding="utf-8"))


@cache
def _dataset_labels() -> Mapping[str, str]:
    return {name: entry.display_name for name, entry in load_registry().items()}


def dataset_label(dataset: str) -> str:
    """Return the printed name of a dataset: its display name, or its name in the study."""
    return _dataset_labels().get(dataset, dataset)


def method_label(method: str) -> str:
    """Return the printed name of a method of a study."""
    return names()["methods"].get(method, method)


def published_backbone(study: Study, backbone: str) -> str | None:
    """Return the name of a backbone in published tables, or None if these are not comparable."""
    return study.backbones[backbone].family.published_as(backbone)


def backbones_published_as(study: Study, name: str) -> list[str]:
    """Return the backbones of a study that publications call `name`."""
    return [backbone for backbone in study.backbones if published_backbone(study, backbone) == name]


def has_paper_datasets(study: Study) -> bool:
    """Return whether the study has exactly the 11 datasets of the published averages."""
    table = load_published()
    printed = table[table["method"] == names()["clip_lora"]["published_as"]]
    return {*study.datasets, AVERAGE} == set(printed["dataset"])


def is_paper(study: Study) -> bool:
    """Return whether the study has the 11 datasets and a backbone of the published tables."""
    return has_paper_datasets(study) and any(
        published_backbone(study, backbone) for backbone in study.backbones
    )


@cache
def load_published() -> pd.DataFrame:
    """Return every published accuracy.

    Columns: method, backbone (published name), shots, dataset (registry name or "average"),
    percent (float), text (the digits of the source), seeds (float, NaN if unknown), source.
    """
    table = pd.read_csv(
        REFERENCE / "published_results.csv", dtype={"accuracy_percent": str}, encoding="utf-8"
    )
    registry = {label: name for name, label in names()["datasets"].items()} | {AVERAGE: AVERAGE}
    return table.assign(
        dataset=table["dataset"].map(registry),
        percent=table["accuracy_percent"].astype(float),
    ).rename(columns={"accuracy_percent": "text"})


def is_published_clip_lora(study: Study, method: str) -> bool:
    """Return whether a method has the adapter of CLIP-LoRA's published numbers.

    Its recipe is not compared.
    """
    adapter = study.methods[method].adapter
    if adapter is None:
        return False
    settings = adapter.to_json()
    return all(settings[key] == value for key, value in names()["clip_lora"]["adapter"].items())
