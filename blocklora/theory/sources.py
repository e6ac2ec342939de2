"""The shapes of a study's models, and the class prompts of its datasets.

They are read from result files only if the package does not know them.
"""

from collections.abc import Sequence
from pathlib import Path

from blocklora.backbones.shape import ClipConfig
from blocklora.csvfiles import read_rows
from blocklora.data.manifest import classnames, iterate_manifest
from blocklora.data.registry import load_registry
from blocklora.errors import UserError
from blocklora.study.study import Study
from blocklora.theory.context import Context

# This file has the lengths of the prompts of the eleven datasets in tokens, including the start and
# the end of the text. Equal prompts are counted once. The class names come from the registry's
# split files and ImageNet's list, except for those of Food101 and FGVC-Aircraft, which come from
# mmpretrain 1.2.0 (datasets/categories.py), and those of SUN397, which come from
# tensorflow-datasets 4.9.10 (sun397_labels.txt) in the form of CoOp (datasets/sun397.py).
PROMPT_LENGTHS = Path(__file__).with_name("prompt_lengths.csv")
PLAIN_PROMPT = "a photo of a {}."


def model_shapes(context: Context) -> dict[str, ClipConfig]:
    """Return the shape of every backbone of a study.

    Raises:
        UserError: The shape of a backbone is unknown.
    """
    study = context.study
    return {name: study.backbone_config(name) for name in study.backbones}


def read_shape(path: Path) -> ClipConfig:
    """Return the shape of the model in a backbone file.

    Raises:
        UserError: The file is unreadable, or its tensors do not have this shape.
    """
    from blocklora.backbones.model import tensor_shapes
    from blocklora.backbones.weights import load_backbone

    backbone = load_backbone(path)
    found = {name: tuple(tensor.shape) for name, tensor in backbone.weights.items()}
    if found != tensor_shapes(backbone.config):
        raise UserError(
            f"{path}: its tensors are not those of {backbone.config.name}; please delete the file "
            "and run again"
        )
    return backbone.config


def class_counts(context: Context) -> dict[str, int]:
    """Return the number of classes of every dataset of a study.

    Raises:
        UserError: The manifest of a local dataset is missing or damaged.
    """
    registry, local = load_registry(), context.study.local_datasets
    return {
        name: len(_class_names(context, name)) if name in local else registry[name].classes
        for name in context.study.datasets
    }


def unlisted_datasets(study: Study) -> tuple[str, ...]:
    """Return the names of the datasets whose prompt lengths are known only from their manifests."""
    prompts = {study.methods[name].recipe.prompt for name in study.adapter_methods}
    listed = _listed_lengths(study) if prompts <= {PLAIN_PROMPT} else ()
    return tuple(name for name in study.datasets if name not in listed)


def dataset_prompts(context: Context, prompt: str) -> dict[str, list[list[int]]]:
    """Return the token ids of one prompt per class for every dataset of a study.

    `prompt` is the template of the prompts. If their lengths are known without a manifest,
    `stand_ins` takes their place.

    Raises:
        UserError: The manifest of a dataset with unknown prompts is missing or damaged.
    """
    from blocklora.backbones.prompts import class_prompts, tokenize

    registry = load_registry()
    lengths = _listed_lengths(context.study) if prompt == PLAIN_PROMPT else {}
    return {
        name: stand_ins(lengths[name], registry[name].classes)
        if name in lengths
        else tokenize(class_prompts(_class_names(context, name), prompt), 10**6)
        for name in context.study.datasets
    }


def stand_ins(lengths: Sequence[tuple[int, int]], classes: int) -> list[list[int]]:
    """Return the token ids of made-up prompts for `classes` classes.

    `lengths` has (distinct prompts, tokens) for each length. Further classes repeat one of these
    prompts.
    """
    tokens = [length for count, length in lengths for _ in range(count)]
    prompts = [[index] + [0] * (length - 1) for index, length in enumerate(tokens)]
    return prompts + [prompts[0]] * (classes - len(prompts))


def _listed_lengths(study: Study) -> dict[str, list[tuple[int, int]]]:
    """Return (distinct prompts, tokens) for each length, by published dataset if it is listed."""
    lengths: dict[str, list[tuple[int, int]]] = {}
    for row in read_rows(PROMPT_LENGTHS, ("dataset", "prompts", "tokens")):
        if row["dataset"] not in study.local_datasets:
            sizes = int(row["prompts"]), int(row["tokens"])
            lengths.setdefault(row["dataset"], []).append(sizes)
    return lengths


def _class_names(context: Context, dataset: str) -> list[str]:
    path, study = context.manifest(dataset), context.study
    if not path.is_file():
        target = Path("results", study.name, path.relative_to(context.results))
        raise UserError(
            f"{path}: no such file, but it is needed for the class names of the dataset {dataset}; "
            f"make it with `snakemake --cores 1 {target} --config study={study.path}`"
        )
    return classnames(iterate_manifest(path))
