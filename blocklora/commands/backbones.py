"""Subcommands of `blocklora.backbones`."""

import logging
import shlex
from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.errors import UserError

logger = logging.getLogger(__name__)


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    parser = subparsers.add_parser(
        "fetch-backbone",
        help="fetch OpenAI's CLIP weights and write the backbone file",
        description="Take OpenAI's CLIP weights from --checkpoint, from --weights-root or from "
        "the hub, in this order, check them and write them as one backbone file.",
    )
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument("--backbone", required=True, help="a backbone of the study")
    parser.add_argument(
        "--weights-root", type=Path, required=True, help="folder of downloaded or own checkpoints"
    )
    parser.add_argument("--checkpoint", type=Path, help="use this file, whatever its checksum")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument("--output", type=Path, required=True, help="backbone file (safetensors)")
    parser.set_defaults(run=fetch_backbone)


def fetch_backbone(options: Namespace) -> None:
    """Run `fetch-backbone`."""
    from blocklora.backbones.hub import verify_checkpoint
    from blocklora.backbones.openai import openai_config
    from blocklora.study.model import load_study

    name = options.backbone
    backbone = load_study(options.study).backbones.get(name)
    if backbone is None:
        raise UserError(f"{options.study}: no backbone {name} in this study")
    if backbone.source != "openai":
        raise UserError(
            f"{options.study}: backbone {name} has the source {backbone.source}, it is not fetched"
        )
    config = openai_config(name)
    path = options.checkpoint or _checkpoint_of_openai(options)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    origin = verify_checkpoint(path, name)
    if origin is None and not options.checkpoint:
        raise UserError(
            f"{path}: its SHA-256 is not that of any published file of {name}. If it is damaged, "
            f"delete it; if it is meant, say so by `sha256sum {path.name} > {path.name}.sha256` "
            "in its folder, or name it by --checkpoint"
        )
    if origin is None:
        logger.warning("%s: not a published file of %s, used as asked", path, name)
    else:
        logger.info("%s: %s, verified", path, origin)

    from blocklora.backbones.checkpoints import canonical_weights, read_checkpoint
    from blocklora.backbones.weights import save_backbone

    weights = canonical_weights(read_checkpoint(path), config)
    save_backbone(options.output, config, weights, origin or f"the file {path.name}, unverified")


def _checkpoint_of_openai(options: Namespace) -> Path:
    """Return the checkpoint below `--weights-root`, downloaded first if need be."""
    from blocklora.backbones.hub import find_checkpoint, obtain_checkpoint
    from blocklora.backbones.openai import openai_model
    from blocklora.data.download import Downloader

    name, root = options.backbone, options.weights_root
    if not options.offline:
        return obtain_checkpoint(name, root, Downloader())
    if found := find_checkpoint(name, root):
        return found
    command = ["blocklora", "fetch-backbone", "--study", options.study, "--backbone", name]
    command += ["--weights-root", root, "--output", options.output]
    raise UserError(
        f"backbone {name}: {root} has neither {name}.safetensors nor OpenAI's "
        f"{openai_model(name).archive}, and --offline forbids fetching. On a machine with network "
        f"run\n  {shlex.join(map(str, command))}\nand copy {name}.safetensors from its "
        f"--weights-root into {root} here"
    )
