"""The training loop: AdamW on the adapter with a cosine schedule and a fixed number of steps."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blocklora.engine.batches import IGNORED, Batch, Batches
from blocklora.engine.fast import Engine
from blocklora.engine.recipe import Recipe
from blocklora.errors import UserError

LOSS_SCALE = 2.0**10
"""The first scale of losses in fp16, at which no step of the tests' small CLIP is lost."""


@dataclass(frozen=True)
class Progress:
    """The progress of the training, as it is stored in checkpoints.

    Attributes:
        step: Number of finished steps.
        seconds: Seconds spent on them.
        history: Rows of `history.csv` so far.
        pending: Loss and numbers of correct predictions and of images of each step since the last
            row.
        scaler: State of the loss scaler; empty if losses are not scaled.
    """

    step: int
    seconds: float
    history: list[dict[str, float]]
    pending: list[tuple[float, float, int]]
    scaler: dict[str, Any]


Unfinished = tuple[list[Tensor], torch.optim.Optimizer, Progress]
"""The trained parameters, their optimizer, and the progress of the training."""


class Keeper:
    """Callbacks during training; this base class keeps nothing and never stops the training."""

    run = "training"
    """Name of the run in messages."""

    def resume(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the parameters and the optimizer of an earlier attempt in place.

        Returns:
            The progress of that attempt, or None if there was none.
        """

    def watch(self, batches: Iterable[Batch], done: int, steps: int) -> Iterable[Batch]:
        """Return the batches of the remaining steps, perhaps wrapped in a progress bar."""
        return batches

    def add_row(self, row: Mapping[str, float], steps: int) -> None:
        """Report a finished row of the history; the training has `steps` steps in all."""

    def after_step(self, done: int, steps: int, unfinished: Callable[[], Unfinished]) -> None:
        """Save a checkpoint if one is due, or raise an error to stop the training here.

        Args:
            done: Number of finished steps.
            steps: Number of all steps.
            unfinished: Returns the contents of a checkpoint; this waits for the device.
        """


@dataclass
class History:
    """The record of the steps so far.

    Attributes:
        rows: Finished rows of `history.csv`.
        pending: Loss and numbers of correct predictions and of images of each step since the last
            row. Tensors stay on the device until a row or a checkpoint is due, so that steps need
            not wait for the device.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    pending: list[tuple[Tensor | float, Tensor | float, int]] = field(default_factory=list)

    def settle(self, run: str, done: int) -> None:
        """Copy the pending values to the host.

        Raises:
            UserError: A loss is not finite; the message names the first such step.
        """
        # After a checkpoint, the first values are on the host already.
        waiting = [step for step in self.pending if isinstance(step[0], Tensor)]
        if waiting:
            losses, hits, images = zip(*waiting, strict=True)
            values = torch.stack(losses).tolist(), torch.stack(hits).tolist()
            self.pending[-len(waiting) :] = zip(*values, images, strict=True)
        for step, (loss, _, _) in enumerate(self.pending, done - len(self.pending) + 1):
            if not isfinite(loss):
                raise UserError(
                    f"run {run}: the loss of step {step} is {loss}, so the run was stopped without "
                    "writing a result; try a lower learning_rate in the study, or precision fp32 "
                    "in the configuration"
                )

    def add_row(self, step: int, learning_rate: float, seconds: float) -> dict[str, float]:
        """Turn the pending steps into a row and return it; call `settle` first."""
        losses, hits, images = zip(*self.pending, strict=True)
        row = {
            "step": step,
            "loss": sum(losses) / len(losses),
            "train_accuracy": sum(hits) / sum(images),
            "learning_rate": learning_rate,
            "seconds": seconds,
        }
        self.rows.append(row)
        self.pending = []
        return row

    def step_seconds(self) -> float:
        """Return the time of a step in seconds, as the median over rows."""
        seconds, steps = (
            np.diff([row[name] for row in self.rows], prepend=0) for name in ("seconds", "step")
        )
        return float(np.median(seconds / steps))


def cosine_learning_rate(step: int, steps: int, first: float, last: float) -> float:
    """Return the learning rate of `step` (from 0) on a half cosine from `first` towards `last`.

    It equals torch's `CosineAnnealingLR(T_max=steps, eta_min=last)`, updated after every step.
    """
    return last + (first - last) * (1 + cos(pi * step / steps)) / 2


def make_optimizer(
    parameters: list[Tensor], recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    """Return AdamW with the hyperparameters of a recipe.

    On a GPU it is a single kernel, which skips the update itself if a gradient is infinite.
    Otherwise the loss scaler would ask the GPU after every step, and wait for its answer.
    """
    return torch.optim.AdamW(
        parameters,
        recipe.learning_rate,
        recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True if device.type == "cuda" else None,
    )


def make_scaler(engine: Engine) -> torch.amp.GradScaler:
    """Return the loss scaler of an engine, which does nothing if its losses are not scaled.

    PyTorch begins with a scale of 2^16, at which the gradients of a small CLIP have overflowed in
    fp16 (`tests/engine/test_precisions.py`). Each overflow halves the scale, but its step is lost,
    and the first steps of a run are its largest.
    """
    return torch.amp.GradScaler(engine.device.type, LOSS_SCALE, enabled=engine.scaled)


def training_step(
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Update the parameters in step `step` (from 0), and return what `Engine.step` returns."""
    optimizer.zero_grad(set_to_none=True)
    loss, correct = engine.step(images, labels, step, scaler)
    scaler.step(optimizer)
    scaler.update()
    return loss, correct


def train(
    engine: Engine, batches: Batches, recipe: Recipe, steps: int, keeper: Keeper | None = None
) -> History:
    """Train the engine's adapter in place for `steps` steps in all, and return the history.

    The keeper may resume an earlier attempt, and is called after every step. Its errors end the
    training.

    Raises:
        UserError: A loss is not finite, an image cannot be decoded, or the keeper's checkpoint
            cannot be used.
    """
    keeper = keeper or Keeper()
    parameters = engine.adapter.parameters()
    optimizer = make_optimizer(parameters, recipe, engine.device)
    scaler = make_scaler(engine)
    history, done, spent = History(), 0, 0.0
    progress = keeper.resume(parameters, optimizer)
    if progress is not None:
        history = History(progress.history, [tuple(step) for step in progress.pending])
        done, spent = progress.step, progress.seconds
        scaler.load_state_dict(progress.scaler)
    started = monotonic()

    def unfinished() -> Unfinished:
        seconds = spent + monotonic() - started
        history.settle(keeper.run, done)
        progress = Progress(done, seconds, history.rows, history.pending, scaler.state_dict())
        return parameters, optimizer, progress

    for images, labels in keeper.watch(batches.iterate(done, steps), done, steps):
        rate = cosine_learning_rate(done, steps, recipe.learning_rate, recipe.final_learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        count = int((labels != IGNORED).sum())
        images = images.to(engine.device, non_blocking=True)
        labels = labels.to(engine.device, non_blocking=True)
        loss, correct = training_step(engine, optimizer, scaler, images, labels, done)
        done += 1
        history.pending.append((loss, correct, count))
        if done % recipe.log_every == 0 or done == steps:
            history.settle(keeper.run, done)
            row = history.add_row(done, rate, spent + monotonic() - started)
            keeper.add_row(row, steps)
        keeper.after_step(done, steps, unfinished)
    return history
