"""Checkpoints of unfinished runs.

A checkpoint holds the adapter, the optimizer and the history up to a step. Random numbers need
none of it (`randomness.py`). It is safetensors with JSON metadata, so nothing is unpickled, and it
is named by the fit's digest, so that it is never taken for that of another configuration.
"""

from pathlib import Path

import torch
from torch import Tensor

from blocklora.engine.loop import Progress
from blocklora.errors import UserError
from blocklora.tensorfiles import read_tensors, write_tensors

FORMAT = "blocklora-checkpoint-1"


def save_checkpoint(
    path: str | Path,
    fit_digest: str,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint; a previous one stays until the new one is complete."""
    tensors = {f"parameter.{i}": p.detach().cpu() for i, p in enumerate(parameters)}
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.detach().cpu()
    facts = {"format": FORMAT, "fit_digest": fit_digest, **vars(progress)}
    write_tensors(path, tensors, facts)


def load_checkpoint(
    path: str | Path,
    fit_digest: str,
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Restore parameters and optimizer in place and return how far the run had come.

    Raises:
        UserError: the checkpoint is cut short, of another version or of another run.
    """
    remedy = "to start the run over, delete the file or pass --restart to `blocklora fit`"
    facts, tensors = read_tensors(path, "checkpoint", remedy, framework="pt")
    try:
        found_format, found_digest = facts.pop("format"), facts.pop("fit_digest")
        if found_format != FORMAT:
            raise UserError(
                f"{path}: this checkpoint is of the format {found_format!r}, not {FORMAT!r}, so "
                f"another version of blocklora wrote it; {remedy}"
            )
        if found_digest != fit_digest:
            raise UserError(
                f"{path}: this checkpoint belongs to another configuration of the run, with the "
                f"digest {found_digest[:12]}…, not {fit_digest[:12]}…; {remedy}"
            )
        progress = Progress(**facts)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); {remedy}") from None
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, index, *rest = name.split(".")
        if kind == "parameter":
            with torch.no_grad():
                parameters[int(index)].copy_(tensor)
        else:
            states.setdefault(int(index), {})[rest[0]] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return progress
