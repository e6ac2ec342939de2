"""Backbone files, which have CLIP weights in one canonical form, wherever they came from.

They are safetensors files with fp32 tensors under open_clip's names. The configuration of the model
is in the metadata.
"""

from pathlib import Path

from torch import Tensor

from blocklora.backbones.model import Backbone
from blocklora.backbones.shape import ClipConfig
from blocklora.errors import UserError
from blocklora.files import file_digest
from blocklora.tensorfiles import read_tensors, write_tensors


def save_backbone(
    path: str | Path, config: ClipConfig, weights: dict[str, Tensor], source: str
) -> None:
    """Write a backbone file; `source` describes the origin of the weights for people.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    write_tensors(path, tensors, {"config": config.to_json(), "source": source})


def load_backbone(path: str | Path) -> Backbone:
    """Return the model in a backbone file.

    Raises:
        UserError: The file is missing, cut short or not a backbone file.
    """
    kind = "backbone file"
    remedy = "name a backbone file; if this one was cut short, delete it and run again"
    facts, weights = read_tensors(path, kind, remedy, framework="pt")
    try:
        config = ClipConfig.from_json(facts["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable {kind} ({error}); {remedy}") from None
    return Backbone(config, weights, file_digest(path))
