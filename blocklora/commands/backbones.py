"""Commands that write backbone files, one for each `Family.command`."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from blocklora.commands import options
from blocklora.commands.options import CACHE, CacheRoot, Key, Output
from blocklora.errors import UserError

if TYPE_CHECKING:
    from blocklora.backbones.published import PublishedModel
    from blocklora.study.study import Study

logger = logging.getLogger(__name__)


def fetch_backbone(
    study: options.Study,
    backbone: options.Backbone,
    weights_root: options.RequiredPath,
    output: Output,
    checkpoint: Path | None = None,
    offline: options.Offline = False,
    cache: CacheRoot = CACHE,
    key: Key = None,
) -> None:
    """Fetch CLIP weights and write them as a backbone file.

    The weights are read from --checkpoint if it is given, or else from --weights-root, and are
    downloaded to that folder if it has none. A file there must have the checksum of a published
    file, or the checksum in a file of the same name with .sha256 appended.

    Args:
        weights_root: Folder for downloaded checkpoints and for your own.
        checkpoint: File to use even if it is not a published one.

    Example: blocklora fetch-backbone --study paper --backbone ViT-B-16-quickgelu
        --weights-root weights --output backbone.safetensors
    """
    from blocklora.backbones.hub import find_checkpoint, obtain_checkpoint, published_origin
    from blocklora.backbones.published import published_model

    config = _study_with(study, backbone, "fetch-backbone").backbone_config(backbone)
    model = published_model(backbone)
    given = checkpoint or find_checkpoint(model, weights_root)
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such checkpoint file")
    # A file that is still to be downloaded will be the published one.
    origin = _origin(given, model, checkpoint is not None) if given else published_origin(model)

    def write(path: Path) -> None:
        from blocklora.backbones.checkpoints import canonical_weights, read_checkpoint
        from blocklora.backbones.weights import save_backbone
        from blocklora.data.download import Downloader

        if given is None and offline:
            raise _not_here(study, model, weights_root, output)
        found = given or obtain_checkpoint(model, weights_root, Downloader())
        save_backbone(path, config, canonical_weights(read_checkpoint(found), config), origin)

    options.provide(cache, key, "weights", origin, f"weights of {backbone}", output, write)


def pretrain_backbone(
    study: options.Study,
    backbone: options.Backbone,
    output: Output,
    threads: options.Threads = 1,
    cache: CacheRoot = CACHE,
    key: Key = None,
) -> None:
    """Pretrain the small CLIP of a miniature study.

    It is trained on drawn pictures and their captions, on the CPU, in about a minute.

    Example: blocklora pretrain-backbone --study mini --backbone mini-clip
        --output backbone.safetensors
    """
    settings = _study_with(study, backbone, "pretrain-backbone").miniature

    def write(path: Path) -> None:
        import torch

        from blocklora.miniature.pretrain import pretrain_backbone

        torch.set_num_threads(threads)
        pretrain_backbone(backbone, settings, path)

    # The number of threads can change how sums are rounded, so it is part of the key.
    options.provide(cache, key, "weights", threads, f"weights of {backbone}", output, write)


def _study_with(name: str, backbone: str, command: str) -> "Study":
    """Return the study, after checking that `command` is what makes its backbone."""
    study = options.open_study(name)
    options.check_name("backbone", backbone, study.backbones)
    entry = study.backbones[backbone]
    if entry.family.command != command:
        raise UserError(
            f"{study.path}: the source of backbone {backbone} is {entry.source}, so its file is "
            f"made by `blocklora {entry.family.command}`, not by {command}"
        )
    return study


def _origin(path: Path, model: "PublishedModel", is_asked_for: bool) -> str:
    """Return the description of a checkpoint for the metadata of the backbone file.

    Raises:
        UserError: The file is neither published nor confirmed by a `.sha256` file, and was not
            named by --checkpoint, or its `.sha256` file has another digest.
    """
    from blocklora.backbones.hub import checkpoint_origin

    origin = checkpoint_origin(path, model)
    if origin is not None:
        logger.info("%s: %s, verified", path, origin)
        return origin
    if not is_asked_for:
        raise UserError(
            f"{path}: its SHA-256 is not that of any published file of {model.name}. If the file "
            f"is damaged, delete it. If it is the one you want, run `sha256sum {path.name} > "
            f"{path.name}.sha256` in its folder, or name the file by --checkpoint"
        )
    logger.warning("%s: not a published file of %s, used as asked", path, model.name)
    return f"the file {path.name}, unverified"


def _not_here(study: str, model: "PublishedModel", root: Path, output: Path) -> UserError:
    """Return the error that says how to get a checkpoint onto a machine without network."""
    command = ["blocklora", "fetch-backbone", "--study", study, "--backbone", model.name]
    command += ["--weights-root", root, "--output", output]
    archive = f" or {model.publisher}'s {model.archive_file}" if model.archive else ""
    return UserError(
        f"backbone {model.name}: {root} does not have {model.hub_file}{archive}, and --offline "
        "forbids downloading it. On a machine with network, run\n"
        f"  {shlex.join(map(str, command))}\n"
        f"and copy {model.hub_file} from its --weights-root into {root} here"
    )
