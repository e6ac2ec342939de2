"""The shapes of a study's models and the prompts of its datasets, from files where not known."""

from collections.abc import Sequence
from pathlib import Path

from blocklora.backbones.config import ClipConfig
from blocklora.csvfiles import read_rows
from blocklora.data.manifest import classnames, iterate_manifest
from blocklora.data.registry import load_registry
from blocklora.errors import UserError
from blocklora.study.model import Study
from blocklora.theory.context import Context

# Lengths of the prompts of the eleven datasets, start and end of text included, equal prompts
# counted once. The class names are those of the registry's split files and list of ImageNet, of
# Food101 and FGVC-Aircraft as in mmpretrain 1.2.0 (datasets/categories.py), and of SUN397 as in
# tensorflow-datasets 4.9.10 (sun397_labels.txt) in CoOp's form (datasets/sun397.py).
PROMPT_LENGTHS = Path(__file__).with_name("prompt_lengths.csv")
PLAIN_PROMPT = "a photo of a {}."


def model_shapes(context: Context) -> dict[str, ClipConfig]:
    """Return the shape of every backbone of a study.

    Raises:
        UserError: the shape of a backbone is not known.
    """
    study = context.study
    return {name: study.backbone_config(name) for name in study.backbones}


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


def class_counts(context: Context) -> dict[str, int]:
    """Return the number of classes of every dataset of a study.

    Raises:
        UserError: the manifest of a dataset that is not published is missing or damaged.
    """
    registry, local = load_registry(), context.study.local_datasets
    return {
        name: len(_class_names(context, name)) if name in local else registry[name].classes
        for name in context.study.datasets
    }


def unlisted_datasets(study: Study) -> tuple[str, ...]:
    """Return the datasets whose class prompts are not known without their manifests."""
    prompts = {study.methods[name].recipe.prompt for name in study.adapter_methods}
    listed = _listed_lengths(study) if prompts <= {PLAIN_PROMPT} else ()
    return tuple(name for name in study.datasets if name not in listed)


def dataset_prompts(context: Context, prompt: str) -> dict[str, list[list[int]]]:
    """Return one prompt per class, as token ids, for every dataset of a study.

    Without a manifest the ids stand for tokens of the right number; different prompts stay
    different.

    Args:
        context: the study and its results.
        prompt: the template of the prompts.

    Raises:
        UserError: the manifest of a dataset whose prompts are not listed is missing or damaged.
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
    """Return `classes` prompts, of which as many of each length differ as `lengths` says.

    `lengths` is a sequence of (different prompts, tokens).
    """
    tokens = [length for count, length in lengths for _ in range(count)]
    prompts = [[index] + [0] * (length - 1) for index, length in enumerate(tokens)]
    return prompts + [prompts[0]] * (classes - len(prompts))


def _listed_lengths(study: Study) -> dict[str, list[tuple[int, int]]]:
    """Return (different prompts, tokens) of the published datasets that are listed."""
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
            f"{path}: no such file, and it tells the class names of the dataset {dataset}; make it "
            f"by `snakemake --cores 1 {target} --config study={study.path}`"
        )
    return classnames(iterate_manifest(path))
