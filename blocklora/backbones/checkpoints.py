"""Reading CLIP checkpoints of several forms into fp32 tensors under open_clip's names.

A checkpoint may be a state dict saved by torch (also inside a training checkpoint, or of a
data-parallel model), OpenAI's TorchScript archive, or a safetensors file. No code in a file is
executed: state dicts are read with `weights_only`, archives by `blocklora.backbones.torchscript`. A
checkpoint must fit the model exactly. In particular, no tensor is interpolated, ignored or made up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocklora.backbones.model import tensor_shapes
from blocklora.backbones.shape import ClipConfig
from blocklora.backbones.torchscript import is_torchscript, read_torchscript
from blocklora.errors import UserError
from blocklora.files import read_json
from blocklora.tensorfiles import read_tensors

# OpenAI's archive has these scalars among its tensors. In open_clip the configuration has them.
OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")

# A message lists at most this many tensors for each kind of fault.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: The path of the file.
        tensors: The tensors by the names that they have in the file.
        quick_gelu: True if the model was trained with QuickGELU, False for the exact GELU, and None
            if the file does not tell.
    """

    path: Path
    tensors: dict[str, Tensor]
    quick_gelu: bool | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the tensors in a checkpoint file, and the activation if the file tells it.

    The models in OpenAI's archives use QuickGELU. For other files, the activation is in the facts
    of a safetensors file that this project wrote, or in an `open_clip_config.json` beside the file.

    Raises:
        UserError: The file is missing, damaged, or contains more than tensors, or the
            configuration beside it is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        facts, tensors = read_tensors(
            path, "safetensors file", "fetch it again", framework="pt", facts_needed=False
        )
        quick_gelu = facts.get("config", {}).get("quick_gelu")
    elif is_torchscript(path):
        tensors, quick_gelu = read_torchscript(path), True
    else:
        tensors, quick_gelu = _read_state_dict(path), None
    beside = path.with_name("open_clip_config.json")
    if quick_gelu is None and beside.is_file():
        try:
            quick_gelu = bool(read_json(beside)["model_cfg"].get("quick_gelu", False))
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: {beside.name} beside it is not a configuration of open_clip; correct "
                "or remove it"
            ) from None
    return Checkpoint(path, tensors, quick_gelu)


def canonical_weights(checkpoint: Checkpoint, config: ClipConfig) -> dict[str, Tensor]:
    """Return the checkpoint's tensors in fp32 under open_clip's names for the model `config`.

    Raises:
        UserError: The activation or the name, shape or dtype of a tensor does not fit. The message
            has all kinds of faults.
    """
    found = {
        name.removeprefix("module."): value
        for name, value in checkpoint.tensors.items()
        if name not in OPENAI_SCALARS
    }
    expected = tensor_shapes(config)
    faults = []
    if checkpoint.quick_gelu not in (None, config.quick_gelu):
        words = {True: "QuickGELU", False: "the exact GELU"}
        faults.append(
            f"QuickGELU mismatch: the weights were trained with {words[checkpoint.quick_gelu]}, "
            f"the model {config.name} computes {words[config.quick_gelu]}"
        )
    for fault, names in (
        ("missing", expected.keys() - found.keys()),
        ("left over", found.keys() - expected.keys()),
        ("wrong tensors", _wrong_tensors(found, expected)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:NAMES_SHOWN])
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            faults.append(f"{fault}: {shown}{more}")
    if faults:
        raise UserError(
            f"{checkpoint.path}: not a checkpoint of {config.name}: {'; '.join(faults)}. "
            "Use the checkpoint of this model, or name the model of this checkpoint in the study"
        )
    # The tensors are copied because those of a file may share memory, and safetensors refuses to
    # write such tensors.
    return {
        name: found[name].reshape(shape).to(torch.float32, copy=True).contiguous()
        for name, shape in expected.items()
    }


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch's own message suggests executing the file
        raise UserError(
            f"{path}: not a readable state dict; the file is damaged or holds more than tensors. "
            "Fetch it again, or load the model, save its model.state_dict() and use that"
        ) from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise UserError(
            f"{path}: no state dict, which would be a mapping from names to tensors; load the "
            "model, save its model.state_dict() and use that"
        )
    return dict(loaded)


def _wrong_tensors(found: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> set[str]:
    faults = set()
    for name in found.keys() & expected.keys():
        # The temperature is a scalar in some files, and a vector of length 1 in others.
        shape = () if name == "logit_scale" and found[name].shape == (1,) else found[name].shape
        if tuple(shape) != expected[name]:
            faults.add(f"{name} is {tuple(shape)} in place of {expected[name]}")
        elif not found[name].is_floating_point():
            faults.add(f"{name} holds {found[name].dtype} in place of floating-point numbers")
    return faults
