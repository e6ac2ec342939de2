"""Unfinished runs: kept in a checkpoint, shown while they go on, stopped when they are asked to.

A checkpoint holds the adapter, the optimizer and the history up to a step. Random numbers need
none of it (`randomness.py`). It is safetensors with JSON metadata, so nothing is unpickled, and it
is named by the key of the run, so that it is never taken for that of another configuration.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor
from tqdm import tqdm

from blocklora.engine.batches import Batch
from blocklora.engine.loop import Keeper, Progress, Unfinished
from blocklora.errors import Interrupted, UserError
from blocklora.tensorfiles import read_tensors, write_tensors

FORMAT = "blocklora-checkpoint-2"

logger = logging.getLogger(__name__)


class CheckpointKeeper(Keeper):
    """Keeps the work of a run in its checkpoint."""

    def __init__(
        self,
        run: str,
        path: Path,
        key: str,
        interval_seconds: float,
        require_lock: Callable[[], None] = lambda: None,
        stop_signal: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Remember where the work of a run is kept.

        Args:
            run: folder of the run below `runs/`, which is its name in messages.
            path: the path of the checkpoint.
            key: the digest of all that the run depends on, which the checkpoint must have.
            interval_seconds: the least time between two checkpoints.
            require_lock: raises `Interrupted` if another process has taken the run over, whose
                checkpoint it then is.
            stop_signal: returns the name of a signal that asks for an early stop, or None.
        """
        self.run, self.path, self.key = run, path, key
        self.interval_seconds = interval_seconds
        self.require_lock, self.stop_signal = require_lock, stop_signal
        self._saved = monotonic()

    def resume(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Progress | None:
        """See `Keeper.resume`.

        Raises:
            UserError: the checkpoint is cut short, of another version or of another run.
        """
        path = self.path
        if not path.exists():
            return None
        remedy = "to start the run over, delete the file or pass --restart to `blocklora fit`"
        facts, tensors = read_tensors(path, "checkpoint", remedy, framework="pt")
        try:
            found_format, found_key = facts.pop("format"), facts.pop("key")
            if found_format != FORMAT:
                raise UserError(
                    f"{path}: this checkpoint is of the format {found_format!r}, not {FORMAT!r}, "
                    f"so another version of blocklora wrote it; {remedy}"
                )
            if found_key != self.key:
                raise UserError(
                    f"{path}: this checkpoint belongs to another configuration of the run, with "
                    f"the key {found_key[:12]}…, not {self.key[:12]}…; {remedy}"
                )
            del facts["run"]
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
        logger.info("run %s: continued from step %d", self.run, progress.step)
        return progress

    def watch(self, batches: Iterable[Batch], done: int, steps: int) -> Iterable[Batch]:
        """See `Keeper.watch`."""
        seconds = monotonic() - self._saved
        logger.info("run %s: ready for its first step after %.1f s", self.run, seconds)
        self._saved = monotonic()
        return tqdm(
            batches,
            desc=self.run,
            total=steps,
            initial=done,
            unit="step",
            disable=None,
            leave=False,
        )

    def add_row(self, row: Mapping[str, float], steps: int) -> None:
        """See `Keeper.add_row`."""
        if not sys.stderr.isatty():
            text = "step {step}/{steps} loss {loss:.4f} accuracy {train_accuracy:.3f} rate "
            text += "{learning_rate:.2e} {seconds:.1f} s"
            logger.info("run %s: %s", self.run, text.format(steps=steps, **row))

    def after_step(self, done: int, steps: int, unfinished: Callable[[], Unfinished]) -> None:
        """See `Keeper.after_step`.

        Raises:
            Interrupted: a signal asked for a stop, and the work is saved; or the lock was lost,
                and nothing is written any more.
        """
        name = self.stop_signal()
        self.require_lock()
        if name or monotonic() - self._saved >= self.interval_seconds or done == steps:
            save_checkpoint(self.path, self.run, self.key, unfinished())
            self._saved = monotonic()
        if name:
            raise Interrupted(
                f"run {self.run}: stopped by {name} after step {done} of {steps}; "
                "start the same command again to go on from there"
            )


def save_checkpoint(path: Path, run: str, key: str, unfinished: Unfinished) -> None:
    """Write the checkpoint of a run; a previous one stays until the new one is complete."""
    parameters, optimizer, progress = unfinished
    tensors = {f"parameter.{i}": p.detach().cpu() for i, p in enumerate(parameters)}
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.detach().cpu()
    facts = {"format": FORMAT, "run": run, "key": key, **vars(progress)}
    write_tensors(path, tensors, facts)
