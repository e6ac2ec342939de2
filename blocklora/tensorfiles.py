"""Safetensors files whose metadata is one JSON object: adapters, backbones, predictions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from blocklora.errors import UserError
from blocklora.files import atomic_path

ENTRY = "blocklora"


def write_tensors(path: str | Path, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write NumPy arrays, or contiguous tensors of torch on the CPU, and `facts`, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file
    # One metadata entry: safetensors writes several in no fixed order.
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, {ENTRY: json.dumps(facts, sort_keys=True)})


def read_tensors(
    path: str | Path,
    kind: str,
    remedy: str,
    *,
    framework: str = "numpy",
    facts_only: bool = False,
    facts_needed: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the facts and the tensors of a file.

    Args:
        path: the path of the file.
        kind: the name of such a file in messages, for example "adapter file".
        remedy: the advice for a file that cannot be read.
        framework: "numpy" or "pt", whose tensors are returned.
        facts_only: True returns no tensors and does not read them.
        facts_needed: False returns no facts for a file without them, of another program.

    Raises:
        UserError: the file is missing, cut short, or has no such metadata.
    """
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            facts = json.loads(metadata[ENTRY] if facts_needed else metadata.get(ENTRY, "{}"))
            names = () if facts_only else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if not isinstance(facts, dict):
            raise TypeError("its metadata is no mapping")
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable {kind} ({error}); {remedy}") from None
    return facts, tensors
