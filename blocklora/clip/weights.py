"""CLIP weights in one canonical file, whatever they came from.

The file is safetensors with fp32 tensors under open_clip's names; the metadata holds the
configuration, so that nothing about the model has to be inferred. Loading needs torch only;
building the open_clip module of the same weights is for the reference engine, pretraining and
tests, since importing open_clip costs seconds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from blocklora.clip.config import ClipConfig
from blocklora.errors import UserError
from blocklora.files import atomic_path, file_digest


@dataclass(frozen=True)
class Backbone:
    """CLIP weights: `weights` maps open_clip's parameter names to fp32 tensors."""

    config: ClipConfig
    weights: dict[str, Tensor]
    sha256: str


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


def build_open_clip(config: ClipConfig, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """Return the open_clip module of this shape in eval mode, with `weights` if given.

    Raises:
        UserError: a tensor is missing, left over or of the wrong shape.
    """
    from open_clip.model import CLIP

    model = CLIP(**config.to_open_clip()).eval()
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"the weights do not fit the model {config.name}: {error}") from None
    return model
