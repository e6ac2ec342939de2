from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.prompts import tokenize
from blocklora.engine.batches import IGNORED, Batches, batch_indices
from blocklora.engine.fast import FastEngine
from blocklora.engine.graphs import Recordings
from blocklora.engine.loop import Keeper, cosine_learning_rate, make_optimizer, train
from blocklora.engine.randomness import torch_generator
from blocklora.errors import Interrupted, UserError
from blocklora.runs.keeper import CheckpointKeeper
from tests.tiny import LORA, RECIPE, tiny_backbone

CONFIG = AdapterConfig(**{**LORA.__dict__, "blocks": 2, "dropout": 0.25})
STEPS = 12


class Pictures:
    """Six random images of two classes."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (6, 40, 36, 3), dtype=np.uint8)

    def __len__(self):
        return 6

    def image(self, index):
        return self.pixels[index]


def engine(seed=3, config=CONFIG, backbone=None):
    backbone = backbone or tiny_backbone()
    adapter = Adapter.initialise(
        config, backbone.config.tower_shapes, torch_generator(seed, "init")
    )
    prompts = tokenize(["a cat", "a small dog"], 20)
    return FastEngine(backbone, adapter, prompts, logit_scale=100.0, seed=seed)


def batches(seed=3, workers=0):
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    return Batches(Pictures(), labels, RECIPE, size=32, seed=seed, workers=workers)


class Named(Keeper):
    run = "tiny"


def keeper(path, digest="digest", seconds=1e9, **options):
    return CheckpointKeeper("tiny", path, digest, seconds, **options)


class Elsewhere(torch.Tensor):
    """A tensor that combines with its own kind alone, as one on a GPU does."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if any(type(value) is torch.Tensor for value in tree_leaves((args, kwargs))):
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs)


def run(seed=3, workers=0, elsewhere=False, kept=None):
    """Train; the losses and correct predictions may lie on a device of their own."""
    subject = engine(seed)
    if elsewhere:
        step = subject.step
        subject.step = lambda *inputs: [value.as_subclass(Elsewhere) for value in step(*inputs)]
    history = train(subject, batches(seed, workers), RECIPE, STEPS, kept)
    return [p.detach().clone() for p in subject.adapter.parameters()], history


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def assert_equal(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert without_times(first[1]) == without_times(second[1])


def test_schedule_equals_torch_cosine_annealing():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=500, eta_min=1e-6)
    for step in range(500):
        expected = scheduler.get_last_lr()[0]
        assert cosine_learning_rate(step, 500, 2e-4, 1e-6) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


@given(st.integers(1, 50), st.integers(1, 40), st.integers(0, 99))
def test_every_epoch_shows_every_image_once(images, batch_size, seed):
    per_epoch = ceil(images / batch_size)
    epochs = [
        [batch_indices(epoch * per_epoch + i, images, batch_size, seed) for i in range(per_epoch)]
        for epoch in range(2)
    ]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(images))
        assert all(len(batch) == batch_size for batch in epoch[:-1])


def test_epochs_are_shuffled_differently():
    orders = [tuple(batch_indices(epoch, 30, 30, 1)) for epoch in range(3)]
    assert len(set(orders)) == 3


def test_training_lowers_the_loss_and_logs_it():
    _, history = run()
    assert [row["step"] for row in history.rows] == [5, 10, 12]
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert history.rows[0]["learning_rate"] == cosine_learning_rate(4, STEPS, 1e-2, 1e-6)
    assert 0 <= history.rows[0]["train_accuracy"] <= 1
    assert history.step_seconds() > 0


def test_one_seed_gives_one_result_and_another_another():
    assert_equal(run(), run())
    assert not torch.equal(run(seed=3)[0][0], run(seed=4)[0][0])


def test_batches_prepared_ahead_are_the_same():
    assert_equal(run(), run(workers=2))


def test_batches_for_a_gpu_are_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: ("pinned", tensor))
    plain, pinned = batches().batch(2), replace(batches(), for_gpu=True).batch(2)
    for value, (mark, copy) in zip(plain, pinned, strict=True):
        assert mark == "pinned"
        assert torch.equal(value, copy)


@pytest.fixture
def unpinned(monkeypatch):
    """Let batches be made for a GPU without one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 32])
def test_batches_for_a_gpu_have_one_size_and_the_images_of_others(unpinned, batch_size):
    recipe = replace(RECIPE, batch_size=batch_size)
    plain = replace(batches(), recipe=recipe)
    size = min(batch_size, 6)
    for step in range(8):
        images, labels = plain.batch(step)
        filled, marked = replace(plain, for_gpu=True).batch(step)
        assert filled.shape[0] == marked.shape[0] == size
        assert torch.equal(filled[: len(images)], images)
        assert torch.equal(marked[: len(images)], labels)
        assert (marked[len(images) :] == IGNORED).all()


def test_threads_that_prepare_batches_compute_alone(monkeypatch):
    threads = []
    monkeypatch.setattr(Batches, "batch", lambda *_: threads.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(replace(batches(), workers=2).iterate(0, 4))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1, 1, 1]


def test_padding_of_a_batch_changes_no_training_and_needs_one_recording(unpinned):
    """Not even dropout, whose masks depend on the position of an image and not on their number."""
    config, shapes = replace(CONFIG, dropout=0.25), []

    def record(compute, inputs):
        shapes.append(inputs[0].shape)
        outputs = compute(*inputs)

        def replay():
            for place, value in zip(outputs, compute(*inputs), strict=True):
                place.copy_(value)

        return replay, outputs

    plain, filled = engine(config=config), engine(config=config)
    filled._recordings = Recordings(record)
    expected = train(plain, batches(), RECIPE, STEPS, Named())
    found = train(filled, replace(batches(), for_gpu=True), RECIPE, STEPS, Named())
    assert filled.recorded
    assert shapes == [(4, 32, 32, 3)]
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        assert ours["train_accuracy"] == theirs["train_accuracy"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for ours, theirs in zip(filled.adapter.parameters(), plain.adapter.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


class ValuesRead(TorchDispatchMode):
    """Counts the values that the host reads from tensors, for which it would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def updated(device, *, infinite=False):
    """Return a parameter after two scaled updates by a device's optimizer, and the values read.

    The second gradient is infinite on request.
    """
    parameter = torch.full((3,), 2.0, requires_grad=True)
    optimizer = make_optimizer([parameter], RECIPE, torch.device(device))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with ValuesRead() as read:
        for factor in (1.0, torch.inf if infinite else 1.0):
            parameter.grad = factor * scaler.scale(torch.tensor([0.1, -0.2, 0.3]))
            scaler.step(optimizer)
            scaler.update()
    return parameter.detach(), read.count


def test_the_optimizer_of_a_gpu_updates_like_that_of_a_cpu_and_never_asks_for_values():
    (found, read), (expected, read_on_cpu) = updated("cuda"), updated("cpu")
    torch.testing.assert_close(found, expected)
    assert (found != 2).all()
    assert read == 0 < read_on_cpu


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_infinite_gradients_change_no_parameter(device):
    once, twice = updated(device, infinite=True)[0], updated(device)[0]
    assert once.isfinite().all()
    assert (once != twice).all()


@pytest.mark.parametrize("stop_after", [1, 5, 7, 12])
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, stop_after):
    path = tmp_path / "run.safetensors"
    calls = iter(range(1, 100))

    def stop():
        return "SIGTERM" if next(calls) == stop_after else None

    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {stop_after} of 12"):
        run(kept=keeper(path, stop_signal=stop))
    assert_equal(run(kept=keeper(path)), run())


@pytest.mark.parametrize("stop_after", [2, 7])
@pytest.mark.parametrize("interval", [0, 1e9])
def test_checkpoints_between_two_rows_do_not_mix_devices(tmp_path, stop_after, interval):
    path = tmp_path / "run.safetensors"
    calls = iter(range(1, 100))

    def stop():
        return "SIGTERM" if next(calls) == stop_after else None

    with pytest.raises(Interrupted):
        run(elsewhere=True, kept=keeper(path, seconds=interval, stop_signal=stop))
    assert_equal(run(elsewhere=True, kept=keeper(path, seconds=interval)), run())


def test_a_run_whose_lock_was_lost_leaves_the_checkpoint_to_its_new_holder(tmp_path):
    path, steps = tmp_path / "run.safetensors", iter(range(1, 100))

    def require():
        if next(steps) == 5:
            path.write_text("of the new holder")
            raise Interrupted("stopped by the loss of its lock")

    with pytest.raises(Interrupted, match="the loss of its lock"):
        run(kept=keeper(path, seconds=0, require_lock=require))
    assert path.read_text() == "of the new holder"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    run(kept=keeper(path, "one"))
    with pytest.raises(UserError, match="belongs to another configuration"):
        run(kept=keeper(path, "two"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_checkpoint_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "run.safetensors"
    run(kept=keeper(path, "one"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"run\.safetensors: not a readable checkpoint"):
        run(kept=keeper(path, "one"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    subject = engine()
    step = subject.step

    def poisoned(images, labels, number, scaler):
        loss, correct = step(images, labels, number, scaler)
        return (loss * float("nan") if number == 6 else loss), correct

    subject.step = poisoned
    with pytest.raises(UserError, match="run tiny: the loss of step 7 is nan"):
        train(subject, batches(), RECIPE, STEPS, Named())


def test_arms_stay_equal_and_block_lora_is_a_scaled_lora_of_lower_rank():
    """DESIGN: Block-LoRA(r, n) trained by AdamW is LoRA(r/n) with the update scaled by n."""
    block = AdapterConfig(**{**LORA.__dict__, "rank": 4, "blocks": 2, "dropout": 0.25})
    # LoRA of rank 2 whose scale alpha/sqrt(2) is twice Block-LoRA's 1/sqrt(4).
    lora = AdapterConfig(
        **{**block.__dict__, "rank": 2, "blocks": 1, "alpha": 2 * block.scale * 2**0.5}
    )
    engines = [engine(config=block), engine(config=lora)]
    for subject in engines:
        train(subject, batches(), RECIPE, STEPS, Named())
    for tower in ("vision", "text"):
        arms = engines[0].adapter.towers[tower].up.detach()
        assert arms.abs().max() > 1e-2
        assert torch.equal(arms[:, :, 0], arms[:, :, 1])
    for (name, ours), (other, theirs) in zip(
        engines[0].adapter.updates(), engines[1].adapter.updates(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3 * theirs.abs().max().item())


def test_a_line_of_the_log_names_its_values_whatever_their_order(tmp_path, caplog):
    caplog.set_level("INFO")
    values = {"seconds": 7.0, "learning_rate": 2e-4, "train_accuracy": 0.5, "loss": 1.5, "step": 3}
    for row in (values, dict(reversed(values.items()))):
        keeper(tmp_path / "c").add_row(row, 9)
    assert (
        caplog.messages == ["run tiny: step 3/9 loss 1.5000 accuracy 0.500 rate 2.00e-04 7.0 s"] * 2
    )
