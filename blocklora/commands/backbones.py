"""Subcommands that write backbone files, one for each `Family.command`."""

import logging
import shlex
from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.backbones.published import PublishedModel, published_model
from blocklora.commands.arguments import add_command, add_options, positive, provide
from blocklora.errors import UserError
from blocklora.study.model import Study, load_study

logger = logging.getLogger(__name__)


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this module's subcommands to the command line."""
    output = "backbone file (safetensors)"
    fetch = add_command(subparsers, _fetch_backbone)
    add_options(fetch, "study", "backbone", "cache", "key", output=output)
    add_options(fetch, weights_root="folder of downloaded or own checkpoints")
    fetch.add_argument("--checkpoint", type=Path, help="use this file, whatever its checksum")
    add_options(fetch, "offline")

    pretrain = add_command(subparsers, _pretrain_backbone)
    add_options(pretrain, "study", "backbone", "cache", "key", output=output)
    pretrain.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads")


def _study_with(options: Namespace, command: str) -> Study:
    """Return the study, whose `--backbone` is one that the subcommand makes."""
    study, name = load_study(options.study), options.backbone
    entry = study.backbones.get(name)
    if entry is None:
        raise UserError(f"{options.study}: no backbone {name} in this study")
    if entry.family.command != command:
        raise UserError(
            f"{options.study}: backbone {name} has the source {entry.source}: its file is made by "
            f"`blocklora {entry.family.command}`, not by {command}"
        )
    return study


def _fetch_backbone(options: Namespace) -> None:
    """Fetch published CLIP weights and write the backbone file.

    A published model's weights are taken from --checkpoint, from --weights-root or from the hub, in
    this order, and checked.
    """
    from blocklora.backbones.hub import find_checkpoint, published_origin

    name = options.backbone
    config = _study_with(options, "fetch-backbone").backbone_config(name)
    model = published_model(name)
    given = options.checkpoint or find_checkpoint(model, options.weights_root)
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such checkpoint file")
    # What has to be downloaded will be the published file.
    origin = _origin(given, model, bool(options.checkpoint)) if given else published_origin(model)

    def write(path: Path) -> None:
        from blocklora.backbones.checkpoints import canonical_weights, read_checkpoint
        from blocklora.backbones.weights import save_backbone

        checkpoint = given or _published_checkpoint(options, model)
        save_backbone(path, config, canonical_weights(read_checkpoint(checkpoint), config), origin)

    provide(options, "weights", origin, f"weights of {name}", options.output, write)


def _origin(path: Path, model: PublishedModel, is_asked_for: bool) -> str:
    """Return in words what a checkpoint is.

    Raises:
        UserError: it is no published file of the model, and nobody said that it is to be used.
    """
    from blocklora.backbones.hub import verify_checkpoint

    origin = verify_checkpoint(path, model)
    if origin is not None:
        logger.info("%s: %s, verified", path, origin)
        return origin
    if not is_asked_for:
        raise UserError(
            f"{path}: its SHA-256 is not that of any published file of {model.name}. If it is "
            f"damaged, delete it; if it is meant, say so by `sha256sum {path.name} > "
            f"{path.name}.sha256` in its folder, or name it by --checkpoint"
        )
    logger.warning("%s: not a published file of %s, used as asked", path, model.name)
    return f"the file {path.name}, unverified"


def _published_checkpoint(options: Namespace, model: PublishedModel) -> Path:
    """Return the checkpoint below `--weights-root`, downloaded first if need be."""
    from blocklora.backbones.hub import find_checkpoint, obtain_checkpoint
    from blocklora.data.download import Downloader

    root = options.weights_root
    if not options.offline:
        return obtain_checkpoint(model, root, Downloader())
    if found := find_checkpoint(model, root):
        return found
    command = ["blocklora", "fetch-backbone", "--study", options.study, "--backbone", model.name]
    command += ["--weights-root", root, "--output", options.output]
    archive = f" or {model.publisher}'s {model.archive_file}" if model.archive else ""
    raise UserError(
        f"backbone {model.name}: {root} does not have {model.hub_file}{archive}, and --offline "
        f"forbids fetching. On a machine with network run\n  {shlex.join(map(str, command))}\n"
        f"and copy {model.hub_file} from its --weights-root into {root} here"
    )


def _pretrain_backbone(options: Namespace) -> None:
    """Pretrain the small CLIP of a miniature study on drawn image-caption pairs, on the CPU."""
    settings = _study_with(options, "pretrain-backbone").miniature

    def write(path: Path) -> None:
        import torch

        from blocklora.miniature.pretrain import pretrain_backbone

        torch.set_num_threads(options.threads)
        pretrain_backbone(options.backbone, settings, path)

    about = f"weights of {options.backbone}"
    provide(options, "weights", options.threads, about, options.output, write)
