"""Every fault of a study or configuration file, each as one readable line.

The schema says most of what is allowed; what it cannot say is checked here.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocklora.backbones.families import FAMILIES
from blocklora.errors import UserError
from blocklora.fields import from_values
from blocklora.files import file_digest
from blocklora.methods import METHODS
from blocklora.miniature.settings import read_settings
from blocklora.study.schema import closest, schema_faults, show
from blocklora.yamlfiles import read_yaml

if TYPE_CHECKING:
    from blocklora.data.registry import Dataset


def check_study(path: str | Path, images_needed: bool = True) -> dict[str, Any]:
    """Return the document in the study file `path`, which has no fault.

    Args:
        path: the study file.
        images_needed: False if the user's own images need not be there.

    Raises:
        UserError: every fault, one a line.
    """
    document = read_yaml(path)
    faults = schema_faults(document, "study")
    if not faults:
        faults = list(_study_faults(document, Path(path)))
        if images_needed:
            faults += _absent_images(document.get("own_datasets", {}))
    _raise_if_any(path, faults)
    return document


def check_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Check the configuration that came from `path` and the command line.

    Raises:
        UserError: every fault, one a line.
    """
    _raise_if_any(path, schema_faults(dict(config), "config"))


def drawn_datasets() -> frozenset[str]:
    """Return the names of the registry's datasets that are drawn instead of downloaded."""
    return frozenset(name for name, entry in _registry().items() if entry.layout == "drawn")


def listing_rules(dataset: str) -> dict[str, Any] | None:
    """Return how the registry lists the images of `dataset`; None for one of the user's.

    Where images and split files come from is not part of it.
    """
    entry = _registry().get(dataset)
    return entry and {
        "layout": entry.layout,
        "classes": entry.classes_file and file_digest(entry.registry / entry.classes_file),
        "split": entry.split_file and entry.split_file.checksum,
    }


def method_config(method: Mapping[str, Any]) -> Any:
    """Return the values of a method of a study, of the type its kind describes, or None.

    Raises:
        UserError: values that do not go together.
    """
    config = METHODS[method["kind"]].config
    values = {key: value for key, value in method.items() if key not in ("kind", "recipe")}
    return config and from_values(config, values)


@cache
def _registry() -> dict[str, "Dataset"]:
    from blocklora.data.registry import load_registry

    return load_registry()


def _study_faults(study: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Yield what the schema cannot say about a study that fits it."""
    if study["name"] != path.stem:
        yield f"name: {show(study['name'])} is not allowed; it must be the file's, {path.stem}"
    for key in ("shots", "seeds"):
        if study[key] != sorted(study[key]):
            yield f"{key}: {study[key]} is not allowed; it must ascend: {sorted(study[key])}"
    yield from _method_faults(study["methods"])
    yield from _recipe_faults(study["recipe"])
    for name, method in study["methods"].items():
        if "recipe" in method:
            merged = study["recipe"] | method["recipe"]
            yield from _recipe_faults(merged, f"methods.{name}.recipe")
    yield from _dataset_faults(study)
    yield from _backbone_faults(study)


def _method_faults(methods: Mapping[str, Any]) -> Iterator[str]:
    without = [name for name, method in methods.items() if method["kind"] == "zero_shot"]
    if len(without) != 1:
        yield (
            f"methods: {len(without)} methods of kind zero_shot are not allowed; there must be "
            "exactly one, since every accuracy is compared with it"
        )
    for name, method in methods.items():
        try:
            method_config(method)
        except UserError as error:
            yield f"methods.{name}: {error}"


def _recipe_faults(recipe: Mapping[str, Any], key: str = "recipe") -> Iterator[str]:
    if recipe["final_learning_rate"] > recipe["learning_rate"]:
        yield (
            f"{key}.final_learning_rate: {recipe['final_learning_rate']} is not allowed; it must "
            f"be at most learning_rate, {recipe['learning_rate']}"
        )
    if recipe["crop_scale"][0] > recipe["crop_scale"][1]:
        yield f"{key}.crop_scale: {recipe['crop_scale']} is not allowed; it must ascend"


def _dataset_faults(study: Mapping[str, Any]) -> Iterator[str]:
    own = study.get("own_datasets", {})
    known = {*_registry(), *own}
    for index, name in enumerate(study["datasets"]):
        if name not in known:
            yield (
                f"datasets[{index}]: {name} is neither in the registry nor in own_datasets"
                f"{closest(name, known)} (allowed: {', '.join(sorted(known))})"
            )
    for name in own:
        if name in _registry():
            yield f"own_datasets.{name}: the registry has a dataset of this name; choose another"


def _absent_images(own: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in own.items():
        if not Path(entry["images"]).is_dir():
            yield f"own_datasets.{name}.images: {entry['images']} is not a folder"
        if "csv" in entry and not Path(entry["csv"]).is_file():
            yield f"own_datasets.{name}.csv: {entry['csv']} is not a file"


def _backbone_faults(study: Mapping[str, Any]) -> Iterator[str]:
    drawn = [f"datasets: {name}" for name in study["datasets"] if name in drawn_datasets()]
    for name, entry in study["backbones"].items():
        source = entry["source"]
        family = FAMILIES[source]
        known = family.names and family.names(source)
        if family.drawn:
            drawn.append(f"backbones: {name}")
        if known is not None and name not in known:
            yield (
                f"backbones.{name}: {family.sources[source]} has no such model"
                f"{closest(name, known)} (allowed: {', '.join(known)})"
            )
    if "miniature" in study:
        yield from (f"miniature.{fault}" for fault in read_settings(study["miniature"]).faults())
    if drawn and "miniature" not in study:
        yield f"miniature: missing; it must be the settings of what is drawn, for {drawn[0]}"
    if not drawn and "miniature" in study:
        yield "miniature: no dataset or backbone of this study is drawn; delete the key"


def _raise_if_any(path: str | Path, faults: list[str]) -> None:
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
