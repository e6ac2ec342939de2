"""The training loop: AdamW on the adapter, a cosine schedule, a fixed number of steps."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from math import cos, isfinite, pi
from pathlib import Path
from statistics import median
from time import monotonic

import torch
from torch import Tensor
from tqdm import tqdm

from blocklora.errors import Interrupted, UserError
from blocklora.training.batches import IGNORED, Batches
from blocklora.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from blocklora.training.engine import Engine
from blocklora.training.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where a run's checkpoint is, which run it belongs to, and how often it is written.

    Attributes:
        require_lock: raises `Interrupted` if another process has taken the run over, whose
            checkpoint it then is.
    """

    path: Path
    run_digest: str
    interval_seconds: float
    require_lock: Callable[[], None] = lambda: None


@dataclass
class History:
    """What is known of the steps so far.

    Attributes:
        rows: finished rows of `history.csv`.
        pending: loss, correct predictions and images of each step since the last row; tensors
            stay on the device until a row is due, so that nothing waits for the device.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    pending: list[tuple[Tensor | float, Tensor | float, int]] = field(default_factory=list)

    def settle(self, run: str, done: int) -> None:
        """Bring the pending values to the host.

        Raises:
            UserError: a loss is not finite; the first such step is named.
        """
        # After a checkpoint the first steps are on the host already, and the others on the device.
        waiting = [step for step in self.pending if isinstance(step[0], Tensor)]
        if waiting:
            losses, hits, images = zip(*waiting, strict=True)
            values = torch.stack(losses).tolist(), torch.stack(hits).tolist()
            self.pending[-len(waiting) :] = zip(*values, images, strict=True)
        for step, (loss, _, _) in enumerate(self.pending, done - len(self.pending) + 1):
            if not isfinite(loss):
                raise UserError(
                    f"run {run}: the loss of step {step} is {loss}, so the run was stopped and "
                    "nothing of it was written; try a lower learning_rate in the study, or "
                    "precision fp32 in the configuration"
                )

    def add_row(self, step: int, learning_rate: float, seconds: float) -> dict[str, float]:
        """Turn the pending steps, which have been settled, into a row and return it."""
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
        """Return the median over rows of the time of a step."""
        steps = [0] + [row["step"] for row in self.rows]
        seconds = [0.0] + [row["seconds"] for row in self.rows]
        return median(
            (t1 - t0) / (s1 - s0)
            for s0, s1, t0, t1 in zip(steps, steps[1:], seconds, seconds[1:], strict=False)
        )


def cosine_learning_rate(step: int, steps: int, first: float, last: float) -> float:
    """Return the rate of `step` (from 0) of a half cosine from `first` towards `last`.

    Equals torch's `CosineAnnealingLR(T_max=steps, eta_min=last)` stepped after every step.
    """
    return last + (first - last) * (1 + cos(pi * step / steps)) / 2


def training_step(
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Do step `step` (from 0) and return loss and correct predictions, as `Engine.step` does."""
    optimizer.zero_grad(set_to_none=True)
    loss, correct = engine.step(images, labels, step, scaler)
    scaler.step(optimizer)
    scaler.update()
    return loss, correct


def train(
    engine: Engine,
    batches: Batches,
    recipe: Recipe,
    steps: int,
    run: str,
    checkpoints: CheckpointPolicy | None = None,
    stop_signal: Callable[[], str | None] = lambda: None,
) -> History:
    """Train the engine's adapter in place for `steps` steps and return what happened.

    A checkpoint of the run, where there is one, is continued from.

    Args:
        engine: computes loss and gradients.
        batches: of the run.
        recipe: learning rate, schedule and logging.
        steps: gradient steps in all.
        run: name of the run, for messages.
        checkpoints: where to save unfinished work; None saves nothing.
        stop_signal: returns the name of a signal that asks for an early stop, or None.

    Raises:
        UserError: the loss is not finite, or the checkpoint cannot be used.
        Interrupted: `stop_signal` asked for a stop, and the work is saved; or the lock was lost,
            and nothing is written any more.
    """
    parameters = engine.adapter.parameters()
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, recipe.betas, weight_decay=recipe.weight_decay
    )
    scaler = torch.amp.GradScaler(engine.device.type, enabled=engine.dtype == torch.float16)
    history, done, spent = History(), 0, 0.0
    if checkpoints is not None and checkpoints.path.exists():
        progress = load_checkpoint(checkpoints.path, checkpoints.run_digest, parameters, optimizer)
        history = History(progress.history, [tuple(step) for step in progress.pending])
        done, spent = progress.step, progress.seconds
        scaler.load_state_dict(progress.scaler)
        logger.info("run %s: continued from step %d", run, done)

    def save(seconds: float) -> None:
        assert checkpoints is not None
        history.settle(run, done)
        progress = Progress(done, seconds, history.rows, history.pending, scaler.state_dict())
        save_checkpoint(checkpoints.path, checkpoints.run_digest, parameters, optimizer, progress)

    started = saved = monotonic()
    bar = tqdm(
        batches.iterate(done, steps),
        desc=run,
        total=steps,
        initial=done,
        unit="step",
        disable=None,
        leave=False,
    )
    for images, labels in bar:
        rate = cosine_learning_rate(done, steps, recipe.learning_rate, recipe.final_learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        count = int((labels != IGNORED).sum())
        images = images.to(engine.device, non_blocking=True)
        labels = labels.to(engine.device, non_blocking=True)
        loss, correct = training_step(engine, optimizer, scaler, images, labels, done)
        done += 1
        history.pending.append((loss, correct, count))
        now = monotonic()
        if done % recipe.log_every == 0 or done == steps:
            history.settle(run, done)
            row = history.add_row(done, rate, spent + monotonic() - started)
            if not sys.stderr.isatty():
                logger.info(
                    "run %s: step %d/%d loss %.4f accuracy %.3f rate %.2e %.1f s",
                    run,
                    done,
                    steps,
                    *list(row.values())[1:],
                )
        name = stop_signal()
        if checkpoints is not None:
            checkpoints.require_lock()
        if checkpoints is not None and (
            name or now - saved >= checkpoints.interval_seconds or done == steps
        ):
            save(spent + now - started)
            saved = monotonic()
        if name:
            raise Interrupted(
                f"run {run}: stopped by {name} after step {done} of {steps}; "
                "start the same command again to go on from there"
            )
    return history
