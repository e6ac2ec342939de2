"""A piece of the benchmark: which processes take turns, for how long, and what they find."""

from dataclasses import replace

import pytest

from blocklora.performance import measure as measuring
from blocklora.performance.machine import Machine
from blocklora.performance.measure import Trial, measure, settings, take_turns
from blocklora.performance.traffic import Traffic
from blocklora.performance.trial import Device
from blocklora.performance.worker import OutOfMemory
from tests.performance.stand_ins import Subject, answers
from tests.tiny import SHAPE


def test_settings_have_the_names_of_imagenet():
    (setting,) = settings(replace(SHAPE, context_length=77), [1000], [2], ["text"], ["bf16"])
    assert sum(map(len, setting.prompts)) == 9165
    assert max(map(len, setting.prompts)) == 18
    assert setting.adapter.towers == ("text",)


class Gpu:
    """Stands for the workers on a GPU, which take their turns in no time.

    Attributes:
        alive: The names of those that are alive.
        most: The largest number of them so far.
        now: Seconds by its clock.
        seconds: The time of a turn by name; other turns take none.
        full: Names and methods for which there is no memory.
    """

    def __init__(self):
        self.alive, self.most, self.now, self.seconds, self.full = [], 0, 0.0, {}, ()

    def worker(self, build, machine, *arguments):
        return Here(self, "device" if build is Device else self.name_of(*arguments))

    @staticmethod
    def name_of(setting, engine, chunks, recorded=True):
        return engine if recorded else "unrecorded"


class Here:
    """Stands for a worker on the stand-in of a GPU."""

    def __init__(self, gpu, name):
        self.gpu, self.name = gpu, name
        gpu.alive.append(name)
        gpu.most = max(gpu.most, len(gpu.alive))

    def ask(self, method):
        if (self.name, method) in self.gpu.full:
            raise OutOfMemory("memory ran out")
        if method == "turn":
            self.gpu.now += self.gpu.seconds.get(self.name, 0.0)
        found = answers(0.5, test_seconds=(1.0, 1.0), kernels=(2000.0, 0.25), recorded=True)
        return (found | {"turn": 0.5, "augmentation_seconds": 0.1})[method]

    def close(self):
        self.gpu.alive.remove(self.name)


@pytest.fixture
def gpu(monkeypatch):
    """Let stand-ins measure, and spare the time of planning and counting."""
    gpu = Gpu()
    monkeypatch.setattr(measuring, "Worker", gpu.worker)
    monkeypatch.setattr(measuring, "perf_counter", lambda: gpu.now)
    monkeypatch.setattr(measuring, "planned_peak_bytes", lambda *_: 10**9)
    monkeypatch.setattr(measuring, "count_step", lambda *_: (10**12, Traffic()))
    return gpu


def measured_on_a_gpu():
    """Return the entry of a small setting."""
    (setting,) = settings(SHAPE, [4], [2], ["both"], ["fp16"])
    return measure(setting, Machine("cuda"), 5, None, True)


def test_few_processes_share_a_gpu(gpu):
    found = measured_on_a_gpu()
    assert (gpu.most, gpu.alive) == (2, [])
    for name in ("fast", "unrecorded", "reference"):
        assert found[name]["rounds_seconds"] == [0.5] * 5
        assert found[name]["reserved_memory_bytes"] == 2 * 10**9
    assert (found["kernels"], found["busy_seconds"], found["recorded"]) == (2000.0, 0.25, True)


def test_rounds_end_when_the_time_of_a_piece_is_used(gpu):
    """A slow reference engine takes the time of the other rounds, but each has its first one."""
    gpu.seconds = {"reference": 25.0}
    found = measured_on_a_gpu()
    assert len(found["fast"]["rounds_seconds"]) == len(found["reference"]["rounds_seconds"]) == 3
    assert len(found["unrecorded"]["rounds_seconds"]) == 1
    assert found["parts_seconds"]["optimizer"] == 0
    assert gpu.now < 120


@pytest.mark.parametrize("method", ["start", "turn", "test_seconds"])
def test_a_lack_of_memory_is_noted_and_ends_nothing_else(gpu, method):
    gpu.full = (("fast", method),)
    found = measured_on_a_gpu()
    # The reductions are fast engines, too.
    lost = {"start": 3, "turn": 3, "test_seconds": 1}[method]
    assert found["ran_out_of_memory"] == ["fast", "towers", "vision"][:lost]
    assert found["fast"] is None
    assert found["reference"]["step_seconds"] == 0.5
    assert found["product_rate_flops"] == 0.5


class Full(Subject):
    """Has no memory for a turn."""

    turn = Subject.run_out


def test_processes_take_turns_and_answer_questions():
    trials = {
        name: Trial((Subject,), questions)
        for name, questions in {
            "one": ("start",),
            "full": (),
            "late": ("run_out", "start"),
            "other": ("turn",),
        }.items()
    }
    trials["full"] = Trial((Full,), ("start",))
    found = take_turns(trials, 3, float("inf"))
    assert found["one"] == {"turns": [2, 3, 4], "start": 1}
    assert (found["full"], found["late"]) == (None, None)
    assert found["other"]["turns"] == [2, 3, 4, 5]


@pytest.mark.gpu
def test_a_piece_on_a_gpu_has_every_measurement():
    shape = replace(SHAPE, context_length=77)
    (setting,) = settings(shape, [10], [4], ["both"], ["fp16"])
    found = measure(setting, Machine("cuda"), 2, None, True)
    assert found["ran_out_of_memory"] == []
    for name in ("fast", "unrecorded", "reference"):
        assert found[name]["reserved_memory_bytes"] >= found[name]["peak_memory_bytes"] > 0
        assert len(found[name]["rounds_seconds"]) == 2
    assert found["recorded"]
    assert found["fast"]["first_loss"] == pytest.approx(found["reference"]["first_loss"], rel=1e-2)
    assert found["kernels"] > 100
    assert 0 < found["busy_seconds"] <= found["unrecorded"]["step_seconds"]
    assert found["test_image_seconds"] > 0
    assert found["piece_seconds"] < 120
