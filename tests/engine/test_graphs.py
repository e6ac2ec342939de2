import gc
import logging
import weakref
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from blocklora.engine.fast import Chunks, FastEngine
from blocklora.engine.graphs import CudaGraphs, Recordings, _recording_stream
from tests.tiny import LORA, SHAPE, tiny_backbone, trained_adapter

PROMPTS = [[1, 2, 3], [1, 4, 5, 3]]


class FakeGraphs:
    """Records by remembering what to call again, with the same places for inputs and outputs."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, compute, inputs):
        self.recorded += 1
        outputs = compute(*inputs)

        def replay():
            self.replayed += 1
            for place, value in zip(outputs, compute(*inputs), strict=True):
                place.copy_(value)

        for place in outputs:
            place.fill_(
                torch.nan if place.is_floating_point() else -1
            )  # recording computes nothing
        return replay, outputs


def scaled_sum(x, y):
    return (x + 2 * y, x.sum()) if y is not None else (x, x.sum())


def test_recorded_function_returns_what_the_function_does():
    graphs = FakeGraphs()
    recorded = Recordings(graphs)
    for size in (3, 3, 2, 3):
        x, y = torch.rand(size), torch.rand(size)
        for found, expected in zip(recorded(scaled_sum, x, y), scaled_sum(x, y), strict=True):
            assert torch.equal(found, expected)
    assert (graphs.recorded, graphs.replayed) == (2, 4)
    assert torch.equal(recorded(scaled_sum, x, None)[0], x)
    assert graphs.recorded == 3


def test_outputs_outlive_the_next_call():
    recorded = Recordings(FakeGraphs())
    first, _ = recorded(scaled_sum, torch.ones(2), torch.zeros(2))
    recorded(scaled_sum, torch.zeros(2), torch.zeros(2))
    assert torch.equal(first, torch.ones(2))


def test_a_function_that_cannot_be_recorded_is_called_and_said_so_once(caplog):
    def fail(compute, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    recorded = Recordings(fail)
    with caplog.at_level(logging.WARNING):
        for size in (3, 2):
            assert torch.equal(recorded(scaled_sum, torch.ones(size), None)[0], torch.ones(size))
    (record,) = caplog.records
    assert "cannot be recorded as a CUDA graph: operation not permitted" in record.getMessage()
    assert recorded.works is False


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")],
)
def test_memory_running_out_while_recording_is_not_hidden(error):
    def fail(compute, inputs):
        raise error

    with pytest.raises(RuntimeError, match="out of memory"):
        Recordings(fail)(scaled_sum, torch.ones(2), None)


def test_an_engine_says_whether_its_steps_are_recorded():
    def fail(compute, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    def recorded(recordings):
        engine = tiny_engine()
        engine._recordings = recordings
        one_step(engine)
        return engine.recorded

    assert recorded(None) is None
    assert recorded(Recordings(FakeGraphs())) is True
    assert recorded(Recordings(fail)) is False


class Outputs:
    """Records by keeping the outputs, as a CUDA graph does, without what computes them."""

    def __call__(self, compute, inputs):
        return lambda: None, compute(*inputs)


@pytest.mark.parametrize("recordings", [None, Recordings(Outputs())])
@pytest.mark.parametrize("chunks", [Chunks(), Chunks(tokens=4, images=1)])
def test_an_engine_is_freed_when_nothing_refers_to_it(recordings, chunks):
    gc.disable()
    try:
        engine = tiny_engine(chunks=chunks)
        engine._recordings = recordings
        one_step(engine)
        freed = weakref.ref(engine)
        del engine
        assert freed() is None
    finally:
        gc.enable()


def tiny_engine(**options):
    backbone = tiny_backbone()
    adapter = trained_adapter(LORA, backbone)
    return FastEngine(backbone, adapter, PROMPTS, logit_scale=100.0, seed=1, **options)


def one_step(engine):
    images = torch.zeros(2, SHAPE.image_size, SHAPE.image_size, 3, dtype=torch.uint8)
    engine.step(images, torch.tensor([0, 1]), 0, torch.amp.GradScaler("cpu", enabled=False))


def steps(device, graphs=None, **options):
    """Return losses and gradients of four steps over two batch sizes."""
    backbone = tiny_backbone()
    config = type(LORA)(**{**vars(LORA), "dropout": 0.25})
    adapter = trained_adapter(config, backbone)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.to(device)
    engine = FastEngine(
        backbone, adapter, PROMPTS, logit_scale=100.0, seed=1, device=device, **options
    )
    if graphs is not None:
        engine._recordings = Recordings(graphs)
    scaler = torch.amp.GradScaler(device, enabled=False)
    generator = torch.Generator().manual_seed(0)
    results = []
    for step, size in enumerate((4, 4, 3, 4)):
        shape = (size, SHAPE.image_size, SHAPE.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.arange(size) % 2
        loss, correct = engine.step(images.to(device), labels.to(device), step, scaler)
        results += [loss.cpu(), correct.cpu(), *(p.grad.cpu() for p in adapter.parameters())]
    return results


def test_recorded_steps_equal_plain_ones_and_gradients_add_up():
    graphs = FakeGraphs()
    plain, recorded = steps("cpu"), steps("cpu", graphs)
    assert (graphs.recorded, graphs.replayed) == (2, 4)
    for found, expected in zip(recorded, plain, strict=True):
        assert torch.equal(found, expected)
    per_step = len(plain) // 4
    assert not torch.equal(plain[2], plain[2 + per_step])


@pytest.fixture
def pretend_to_record(monkeypatch):
    """Return a function that replaces CUDA by stand-ins, and the recording by a function."""

    def replace_cuda(graph):
        for name in ("current_stream", "CUDAGraph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, MagicMock())
        monkeypatch.setattr(torch.cuda, "Stream", lambda: MagicMock())
        monkeypatch.setattr(torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(torch.cuda, "graph", graph)

    _recording_stream.cache_clear()
    yield replace_cuda
    _recording_stream.cache_clear()


def test_recording_lets_other_threads_use_the_gpu(pretend_to_record):
    modes = []

    def graph(graph, pool, stream, capture_error_mode="global"):
        modes.append(capture_error_mode)
        return nullcontext()

    pretend_to_record(graph)
    CudaGraphs()(scaled_sum, [torch.ones(2), None])
    assert modes == ["thread_local"]


def test_all_recordings_of_a_process_use_one_stream(pretend_to_record):
    """cuBLAS allocates workspaces for every stream, and never frees them."""
    streams = []

    def graph(graph, stream, **options):
        streams.append(stream)
        return nullcontext()

    pretend_to_record(graph)
    for recordings in (CudaGraphs(), CudaGraphs()):
        for size in (2, 3):
            recordings(scaled_sum, [torch.ones(size), None])
    assert len(streams) == 4
    assert len(set(map(id, streams))) == 1
