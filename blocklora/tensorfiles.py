"""Reading and writing safetensors files with a JSON object of facts in their metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from blocklora.errors import UserError
from blocklora.files import atomic_path

ENTRY = "blocklora"
"""The key of the facts in the metadata of a file."""


def write_tensors(path: str | Path, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write NumPy arrays, or contiguous PyTorch tensors on the CPU, and `facts` atomically.

    Raises:
        UserError: There is no room for the file, or no permission to write it.
    """
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file
    # The facts are a single entry, because safetensors writes several entries in no fixed order.
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
    """Return the facts in a file, and its tensors by name.

    Args:
        path: The path of the file.
        kind: What messages call such a file, for example "adapter file".
        remedy: What messages advise if the file cannot be read.
        framework: "numpy" for NumPy arrays, or "pt" for PyTorch tensors.
        facts_only: True to return no tensors, which saves the time of reading them.
        facts_needed: False to accept files of other programs, which have no facts.

    Raises:
        UserError: The file is missing or damaged, or has no facts although they are needed.
    """
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            facts = json.loads(metadata[ENTRY] if facts_needed else metadata.get(ENTRY, "{}"))
            names = () if facts_only else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if not isinstance(facts, dict):
            raise TypeError("its metadata is not a mapping")
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable {kind} ({error}); {remedy}") from None
    return facts, tensors
