"""The training loop on a GPU: it never waits, and goes on from its checkpoints."""

import threading
import time

import pytest
import torch

from tests.gpu import setting as gpu
from tests.gpu.setting import Interrupted

pytestmark = pytest.mark.gpu

STEPS, LOG_EVERY = 12, 5
# Of an interrupted run from an undisturbed one: sums on a GPU are in any order.
ROUNDING = {"fp32": 1e-2, "bf16": 8e-2, "fp16": 8e-2}


@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "plain"])
def test_loop_waits_for_the_gpu_only_when_a_line_of_the_history_is_due(precision, graphs):
    """From the third to the last step but one, whatever waits for the GPU is an error."""
    done = iter(range(1, 99))

    def after_each_step():
        modes = {2: "error", STEPS - 1: "default"}
        torch.cuda.set_sync_debug_mode(modes.get(next(done), torch.cuda.get_sync_debug_mode()))

    options = {"cuda_graphs": graphs, "after_step": after_each_step}
    try:
        _, history = gpu.trained(gpu.small(precision), STEPS, images=10, log_every=99, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["step"] for row in history.rows] == [STEPS]


def assert_same_training(found, wanted, precision):
    """Compare adapters and histories of two trainings."""
    (subject, history), (undisturbed, expected) = found, wanted
    parameters = ([p.detach() for p in run.adapter.parameters()] for run in (subject, undisturbed))
    assert gpu.apart(*parameters) < ROUNDING[precision]
    assert [row["step"] for row in history.rows] == [5, 10, 12]
    for row, other in zip(history.rows, expected.rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=ROUNDING[precision])


def test_checkpoint_after_every_step_changes_nothing(tmp_path, precision):
    which = gpu.small(precision)
    options = {"count": STEPS, "images": 10, "log_every": LOG_EVERY}
    found = gpu.trained(which, **options, checkpoint=tmp_path / "run.safetensors")
    assert_same_training(found, gpu.trained(which, **options), precision)


@pytest.mark.parametrize("interval", [0, 1e9], ids=["every_step", "when_stopped"])
def test_stopped_run_ends_like_an_undisturbed_one(tmp_path, precision, interval):
    """It is stopped between two lines of its history, whose values then come from both parts."""
    which = gpu.small(precision)
    options = {"count": STEPS, "images": 10, "log_every": LOG_EVERY}
    kept = {"checkpoint": tmp_path / "run.safetensors", "interval": interval}
    done = iter(range(1, 99))

    def stop():
        return "SIGTERM" if next(done) == 7 else None

    with pytest.raises(Interrupted, match="after step 7 of 12"):
        gpu.trained(which, **options, **kept, after_step=stop)
    found = gpu.trained(which, **options, **kept)
    assert_same_training(found, gpu.trained(which, **options), precision)


def recorded_beside_pinning():
    """Record a step while threads pin memory; return the recordings, pinned blocks and errors."""
    which = gpu.vit_b16(100, "fp16")
    subject = gpu.engine(which)
    stop, pinned, errors = threading.Event(), [], []

    def pin():
        kept = []
        while not stop.is_set():
            try:
                kept = [*kept[-5:], torch.empty(3 << 20, dtype=torch.uint8).pin_memory()]
                pinned.append(len(kept))
            except RuntimeError as error:
                errors.append(str(error))
            time.sleep(0.005)

    threads = [threading.Thread(target=pin) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        results = gpu.steps(subject, which, [32, 13, 32])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    finite = all(value.isfinite().all().item() for value in results)
    return gpu.recordings(subject), len(pinned), errors, finite


def test_recording_bears_threads_that_pin_memory():
    """Those that prepare batches do so at any time; a failure may leave CUDA unusable."""
    recordings, pinned, errors, finite = gpu.alone(recorded_beside_pinning)
    assert errors == []
    assert recordings > 0
    assert pinned > 0
    assert finite
