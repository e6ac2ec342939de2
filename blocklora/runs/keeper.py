"""Checkpoints of unfinished runs, and the progress that a run shows in the log.

A checkpoint holds the adapter, the optimizer and the history up to a step. The state of random
numbers is not needed, because they depend on the seed and the step alone (`randomness.py`). A
checkpoint is a safetensors file with JSON metadata, so nothing is unpickled. Its name is the key of
the run, so it is never used for another configuration.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass
class CheckpointKeeper(Keeper):
    """Keeps the work of a run in a checkpoint.

    Attributes:
        run: The folder of the run below `runs/`, by which messages name the run.
        path: The path of the checkpoint.
        key: The digest of all that the run depends on; the checkpoint must have the same.
        interval_seconds: The least time between two checkpoints.
        require_lock: Raises `Interrupted` if another process has taken over the run.
        stop_signal: Returns the name of a signal that asks for an early stop, or None.
    """

    run: str = field()  # without `field()`, the value in the base class would be the default
    path: Path
    key: str
    interval_seconds: float
    require_lock: Callable[[], None] = lambda: None
    stop_signal: Callable[[], str | None] = lambda: None
    _saved: float = field(default_factory=monotonic, init=False)

    def resume(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Progress | None:
        """See `Keeper.resume`.

        Raises:
            UserError: The checkpoint is damaged, of another version or of another run.
        """
        path = self.path
        if not path.exists():
            return None
        remedy = "to start the run over, delete the file or pass --restart to `blocklora fit`"
        facts, tensors = read_tensors(path, "checkpoint", remedy, framework="pt")
        found_format, found_key, _ = (facts.pop(name, None) for name in ("format", "key", "run"))
        if found_format != FORMAT:
            raise UserError(
                f"{path}: this checkpoint has the format {found_format!r}, not {FORMAT!r}, "
                f"so another version of blocklora wrote it; {remedy}"
            )
        if found_key != self.key:
            raise UserError(
                f"{path}: this checkpoint belongs to another configuration of the run, with "
                f"the key {str(found_key)[:12]}…, not {self.key[:12]}…; {remedy}"
            )
        try:
            progress = Progress(**facts)
        except TypeError as error:
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
        options = {"unit": "step", "disable": None, "leave": False}
        return tqdm(batches, self.run, total=steps, initial=done, **options)

    def add_row(self, row: Mapping[str, float], steps: int) -> None:
        """See `Keeper.add_row`."""
        if not sys.stderr.isatty():
            text = "step {step}/{steps} loss {loss:.4f} accuracy {train_accuracy:.3f} rate "
            text += "{learning_rate:.2e} {seconds:.1f} s"
            logger.info("run %s: %s", self.run, text.format(steps=steps, **row))

    def after_step(self, done: int, steps: int, unfinished: Callable[[], Unfinished]) -> None:
        """See `Keeper.after_step`.

        Raises:
            UserError: The loss is not finite, or the checkpoint cannot be written.
            Interrupted: A signal asked for a stop, and the work is saved; or another process took
                over the run, and nothing more is written.
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
    """Write the checkpoint of a run; the previous one stays until the new one is complete.

    Raises:
        UserError: The file cannot be written.
    """
    parameters, optimizer, progress = unfinished
    tensors = {f"parameter.{i}": p.detach().cpu() for i, p in enumerate(parameters)}
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value.detach().cpu()
    facts = {"format": FORMAT, "run": run, "key": key, **vars(progress)}
    write_tensors(path, tensors, facts)
