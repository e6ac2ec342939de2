"""What the theory needs to know of a study's models, datasets and runs, from files where given."""

import csv
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from blocklora.backbones.config import ClipConfig
from blocklora.csvfiles import read_rows
from blocklora.data.manifest import classnames, iterate_manifest
from blocklora.data.registry import load_registry
from blocklora.errors import UserError
from blocklora.study.model import Run, Study

# Lengths of the prompts of the eleven datasets, start and end of text included, equal prompts
# counted once. The class names are those of the registry's split files and list of ImageNet, of
# Food101 and FGVC-Aircraft as in mmpretrain 1.2.0 (datasets/categories.py), and of SUN397 as in
# tensorflow-datasets 4.9.10 (sun397_labels.txt) in CoOp's form (datasets/sun397.py).
PROMPT_LENGTHS = Path(__file__).with_name("prompt_lengths.csv")
PLAIN_PROMPT = "a photo of a {}."

RUN_COLUMNS = ("backbone", "dataset", "method", "shots", "seed", "rank")


def model_shapes(study: Study, files: Iterable[Path]) -> dict[str, ClipConfig]:
    """Return the shape of every backbone of a study.

    Args:
        study: the study.
        files: backbone files `<backbone>.safetensors`, whose shapes count; any may be missing.

    Raises:
        UserError: a file is of no backbone of the study or not what its metadata say.
    """
    given = _by_name(files, study.backbones, "backbone", lambda path: path.stem)
    return {
        name: read_shape(given[name]) if name in given else study.backbone_config(name)
        for name in study.backbones
    }


def read_shape(path: Path) -> ClipConfig:
    """Return the shape of the model in a backbone file, checked against its tensors.

    Raises:
        UserError: the file is unreadable, or its tensors are not those of the shape it names.
    """
    from blocklora.backbones.model import tensor_shapes
    from blocklora.backbones.weights import load_backbone

    backbone = load_backbone(path)
    found = {name: tuple(tensor.shape) for name, tensor in backbone.weights.items()}
    if found != tensor_shapes(backbone.config):
        raise UserError(
            f"{path}: its tensors are not those of {backbone.config.name}; delete it and run again"
        )
    return backbone.config


def class_counts(study: Study, manifests: Iterable[Path]) -> dict[str, int]:
    """Return the number of classes of every dataset of a study.

    Args:
        study: the study.
        manifests: files `<dataset>/manifest.csv`; only the user's own datasets need them.

    Raises:
        UserError: a manifest is of no dataset of the study, or the manifest of one is missing.
    """
    given = _manifests(study, manifests)
    registry = load_registry()
    counts = {}
    for name in study.datasets:
        if name in given:
            counts[name] = len(classnames(iterate_manifest(given[name])))
        elif name in registry:
            counts[name] = registry[name].classes
        else:
            raise _unknown(name, "number of classes")
    return counts


def dataset_prompts(study: Study, manifests: Iterable[Path]) -> dict[str, list[list[int]]]:
    """Return one prompt per class, as token ids, for every dataset of a study.

    Without a manifest the ids stand for tokens of the right number; different prompts stay
    different.

    Raises:
        UserError: a manifest is of no dataset of the study, or the prompts of a dataset are not
            known without one.
    """
    from blocklora.backbones.prompts import class_prompts, tokenize

    given = _manifests(study, manifests)
    registry = load_registry()
    lengths = _prompt_lengths() if study.recipe.prompt == PLAIN_PROMPT else {}
    prompts = {}
    for name in study.datasets:
        if name in given:
            names = classnames(iterate_manifest(given[name]))
            prompts[name] = tokenize(class_prompts(names, study.recipe.prompt), 10**6)
        elif name in lengths:
            prompts[name] = stand_ins(lengths[name], registry[name].classes)
        else:
            raise _unknown(name, "prompts' length")
    return prompts


def stand_ins(lengths: Sequence[tuple[int, int]], classes: int) -> list[list[int]]:
    """Return `classes` prompts, of which as many of each length differ as `lengths` says.

    `lengths` is a sequence of (different prompts, tokens).
    """
    tokens = [length for count, length in lengths for _ in range(count)]
    prompts = [[index] + [0] * (length - 1) for index, length in enumerate(tokens)]
    return prompts + [prompts[0]] * (classes - len(prompts))


def adapted_runs(aggregate: Path, columns: Sequence[str] = ()) -> list[tuple[Run, dict[str, str]]]:
    """Return the runs with an adapter of a runs.csv, and their rows, which have `columns`.

    Raises:
        UserError: the file is missing or damaged.
    """
    found = []
    for row in read_rows(aggregate, (*RUN_COLUMNS, *columns)):
        if not row["rank"]:
            continue
        try:
            shots, seed = int(row["shots"]), int(row["seed"])
        except ValueError as error:
            raise UserError(f"{aggregate}: damaged ({error}); delete it and run again") from None
        found.append((Run(row["backbone"], row["dataset"], row["method"], shots, seed), row))
    return found


def _prompt_lengths() -> dict[str, list[tuple[int, int]]]:
    lengths: dict[str, list[tuple[int, int]]] = {}
    with PROMPT_LENGTHS.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            lengths.setdefault(row["dataset"], []).append((int(row["prompts"]), int(row["tokens"])))
    return lengths


def _manifests(study: Study, files: Iterable[Path]) -> dict[str, Path]:
    return _by_name(files, study.datasets, "dataset", lambda path: path.parent.name)


def _by_name(
    files: Iterable[Path], allowed: Collection[str], kind: str, name_of: Callable[[Path], str]
) -> dict[str, Path]:
    named = {name_of(path): path for path in files}
    for name, path in named.items():
        if name not in allowed:
            raise UserError(f"{path}: the study has no {kind} {name}; it has {', '.join(allowed)}")
    return named


def _unknown(dataset: str, what: str) -> UserError:
    return UserError(f"dataset {dataset}: its {what} is in its manifest; give it to --manifests")
