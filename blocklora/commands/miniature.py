"""Subcommands of `blocklora.miniature`."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import positive


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    parser = subparsers.add_parser(
        "pretrain-backbone",
        help="pretrain the small CLIP of a miniature study",
        description="Pretrain a small CLIP on drawn image-caption pairs, on the CPU.",
    )
    parser.add_argument("--study", type=Path, required=True, metavar="FILE")
    parser.add_argument("--backbone", required=True, metavar="NAME")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.set_defaults(run=_pretrain_backbone)


def _pretrain_backbone(options: Namespace) -> None:
    from blocklora.errors import UserError
    from blocklora.miniature.settings import read_settings
    from blocklora.study.model import load_study

    study = load_study(options.study)
    entry = study.backbones.get(options.backbone)
    if entry is None or entry.source != "miniature":
        raise UserError(
            f"{options.study}: {options.backbone!r} is not a backbone with source: miniature"
        )
    settings = read_settings(study.miniature)

    import torch

    from blocklora.miniature.pretrain import pretrain_backbone

    torch.set_num_threads(options.threads)
    pretrain_backbone(options.backbone, settings, options.output)
