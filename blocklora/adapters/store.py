"""Adapter files: safetensors files whose metadata says everything that is needed to use them."""

from pathlib import Path
from typing import Any

import torch

from blocklora.adapters.adapter import Adapter, Factors
from blocklora.adapters.config import AdapterConfig
from blocklora.errors import UserError
from blocklora.tensorfiles import read_tensors, write_tensors

FORMAT = "blocklora-adapter-1"


def save_adapter(
    path: str | Path, adapter: Adapter, backbone: str, backbone_sha256: str, **record: Any
) -> None:
    """Write an adapter as tensors `<tower>.<layer>.<matrix>.down` and `.up`.

    The metadata has the configuration, the name and the SHA-256 of the backbone file on which the
    adapter was trained, and the JSON-serialisable values of `record`, such as dataset and shots.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = {}
    for name, down, up in adapter.matrices():
        tensors[f"{name}.down"] = down.detach().cpu().contiguous()
        tensors[f"{name}.up"] = up.detach().cpu().contiguous()
    facts = {
        "format": FORMAT,
        "config": adapter.config.to_json(),
        "backbone": backbone,
        "backbone_sha256": backbone_sha256,
        **record,
    }
    write_tensors(path, tensors, facts)


def read_adapter_record(path: str | Path) -> dict[str, Any]:
    """Return the metadata of an adapter file as a dictionary.

    Raises:
        UserError: The file is missing, damaged, or not an adapter of this project.
    """
    return _read(path, with_tensors=False)[0]


def load_adapter(
    path: str | Path, backbone_sha256: str | None = None, config: AdapterConfig | None = None
) -> Adapter:
    """Return the adapter in a file.

    Args:
        path: The path of the adapter file.
        backbone_sha256: The SHA-256 that the adapter's backbone file must have, or None for any.
        config: The configuration that the adapter must have, or None for any.

    Raises:
        UserError: The file is missing, damaged, or not an adapter of this project, or the adapter
            has another backbone or configuration.
    """
    from blocklora.validation import validated

    facts, tensors = _read(path, with_tensors=True)
    found = validated(AdapterConfig, facts["config"], path)
    if config is not None and found != config:
        wanted = config.to_json()
        differing = [key for key, value in found.to_json().items() if value != wanted[key]]
        raise UserError(
            f"{path}: the adapter does not have the requested configuration; it differs in "
            + ", ".join(f"{key} ({facts['config'][key]}, not {wanted[key]})" for key in differing)
        )
    if backbone_sha256 is not None and facts["backbone_sha256"] != backbone_sha256:
        raise UserError(
            f"{path}: the adapter was trained on another backbone, {facts['backbone']} with "
            f"SHA-256 {facts['backbone_sha256'][:12]}…, not {backbone_sha256[:12]}…"
        )
    towers = {}
    for tower in found.towers:
        layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith(tower)})
        names = [f"{tower}.{layer}.{matrix}" for layer in layers for matrix in found.matrices]
        stack = len(layers), len(found.matrices)
        try:
            down, up = (
                torch.stack([tensors[f"{name}.{factor}"] for name in names]).unflatten(0, stack)
                for factor in ("down", "up")
            )
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path}: the adapter is incomplete ({error})") from None
        towers[tower] = Factors(layers[0], down.requires_grad_(), up.requires_grad_())
    return Adapter(found, towers)


def _read(path: str | Path, with_tensors: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    kind = "adapter file"
    remedy = "name an adapter file; if this one was cut short, delete it and fit the run again"
    facts, tensors = read_tensors(path, kind, remedy, framework="pt", facts_only=not with_tensors)
    if missing := {"format", "config", "backbone", "backbone_sha256"} - facts.keys():
        raise UserError(f"{path}: not a readable {kind} (it lacks {min(missing)}); {remedy}")
    if facts["format"] != FORMAT:
        raise UserError(f"{path}: the adapter format is {facts['format']!r}, not {FORMAT!r}")
    return facts, tensors
