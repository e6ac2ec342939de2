"""CLIP weights in one canonical file, whatever they came from.

The file is safetensors with fp32 tensors under open_clip's names; the metadata holds the
configuration, so that nothing about the model has to be inferred.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blocklora.backbones.config import ClipConfig
from blocklora.backbones.model import Backbone
from blocklora.errors import UserError
from blocklora.files import atomic_path, file_digest


def save_backbone(
    path: str | Path, config: ClipConfig, weights: dict[str, Tensor], source: str
) -> None:
    """Write a backbone file; `source` says in words where the weights came from."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    facts = {"config": config.to_json(), "source": source}
    # One metadata entry: safetensors writes several in no fixed order.
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"blocklora": json.dumps(facts, sort_keys=True)})


def load_backbone(path: str | Path, device: str | torch.device = "cpu") -> Backbone:
    """Read a backbone file.

    Raises:
        UserError: the file is missing, cut short or not a backbone file.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads((file.metadata() or {})["blocklora"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = ClipConfig.from_json(facts["config"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such backbone file") from None
    except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a readable backbone file ({error}); delete it and run again"
        ) from None
    return Backbone(config, weights, file_digest(path))
