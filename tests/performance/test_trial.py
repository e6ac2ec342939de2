"""What the processes of the benchmark measure."""

from statistics import median

import pytest
import torch

from blocklora.engine.fast import Chunks
from blocklora.performance import trial
from blocklora.performance.machine import Machine
from blocklora.performance.measure import settings
from blocklora.performance.trial import Device, Training
from tests.tiny import SHAPE


def test_steps_of_a_trial_train():
    (setting,) = settings(SHAPE, [4], [4], ["both"], ["fp32"])
    training = Training(Machine("cpu"), setting, "fast", Chunks())
    first = training.step()
    training.optimizer = torch.optim.AdamW(training.adapter.parameters(), 1e-2)
    assert training.step_seconds(20) > 0
    assert training.step() < first


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 20), (0.3, 6), (5.0, 1)])
def test_a_turn_has_fewer_steps_if_they_take_long(seconds, steps, monkeypatch):
    (setting,) = settings(SHAPE, [2], [1], ["vision"], ["fp32"])
    training = Training(Machine("cpu", 1), setting, "fast", Chunks())
    monkeypatch.setitem(trial.STEPS_PER_TURN, "cpu", 20)
    monkeypatch.setattr(training, "step_seconds", lambda steps: seconds)
    training.start()
    assert training.steps == steps


def test_the_rate_of_products_is_plausible():
    """Within what this processor can do: between a thousandth and ten times of a timed product."""
    device = Device(Machine("cpu", 1), "fp32", 32, 2)
    assert 1e8 < device.turn() < 1e13
    assert device.augmentation_seconds() > 0


def test_the_time_of_augmentation_is_a_median_of_warm_calls(monkeypatch):
    device, calls = Device(Machine("cpu", 1), "fp32", 32, 1), []
    times = [3.0, 1.0, 100.0, 2.0, 4.0]
    monkeypatch.setattr(trial, "cut", lambda *_: calls.append("cut"))

    def seconds(self, work):
        assert calls  # one that is not measured came first
        work()
        return times[len(calls) - 2]

    monkeypatch.setattr(Machine, "seconds", seconds)
    assert device.augmentation_seconds() == median(times)
