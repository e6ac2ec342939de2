"""One small model, written as every checkpoint form that is accepted."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from blocklora.backbones.shape import ClipConfig
from blocklora.backbones.weights import save_backbone
from tests.tiny import SHAPE, tiny_backbone

NAME = "ViT-B-16-quickgelu"
CONFIG = replace(SHAPE, name=NAME)

# What OpenAI's archive holds in fp16; the rest is fp32.
HALF = (
    "conv1.weight",
    "in_proj_weight",
    "in_proj_bias",
    "proj.weight",
    "proj.bias",
    "c_fc.weight",
    "c_fc.bias",
    "visual.proj",
    "text_projection",
)


def small_weights() -> dict[str, torch.Tensor]:
    """Return weights that the archive's dtypes hold exactly, so all forms hold equal numbers."""
    return {
        name: (value.half().float() if name.endswith(HALF) else value).clone()
        for name, value in tiny_backbone(shape=CONFIG).weights.items()
    }


def openai_archive(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    """Write a TorchScript archive with the members and dtypes of OpenAI's."""
    root = nn.Module()
    for name, value in weights.items():
        *parents, last = name.split(".")
        module = root
        for part in parents:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.ModuleList() if part == "resblocks" else nn.Module())
            module = module.get_submodule(part)
        value = value.half() if name.endswith(HALF) else value
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    root.register_buffer("input_resolution", torch.tensor(config.image_size))
    root.register_buffer("context_length", torch.tensor(config.context_length))
    root.register_buffer("vocab_size", torch.tensor(config.vocab_size))
    torch.jit.save(torch.jit.script(root), str(path))
    return path


def state_dict(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    torch.save(weights, path)
    return path


def training_checkpoint(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 3, "name": "a run", "state_dict": wrapped}, path)
    return path


def legacy_state_dict(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


def safetensors_file(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    save_file(weights, path)
    return path


def own_file(path: Path, weights: dict[str, torch.Tensor], config: ClipConfig) -> Path:
    save_backbone(path, config, weights, "a test")
    return path


FORMS = {
    "clip.pt": state_dict,
    "clip.pth": training_checkpoint,
    "clip.bin": legacy_state_dict,
    "openai.pt": openai_archive,
    "clip.safetensors": safetensors_file,
    "own.safetensors": own_file,
}
