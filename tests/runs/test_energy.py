import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from blocklora.runs.energy import energy_joules, energy_since

IDENTIFIER = "01234567-89ab-cdef-0123-456789abcdef"


class NVMLError(Exception):
    pass


def driver(drawn, fails="nvmlDeviceGetMigMode", split=False):
    """Return a stand-in for pynvml with one card, in which the function `fails` raises an error.

    By default it is the one about slices, because most cards cannot be split.
    """
    module = ModuleType("pynvml")

    def function(name, answer):
        def call(*arguments):
            if name == fails:
                raise NVMLError(name)
            return answer(*arguments)

        setattr(module, name, call)

    def find(identifier):
        if identifier != f"GPU-{IDENTIFIER}":
            raise NVMLError("no such card")
        return "card"

    module.NVMLError = NVMLError
    module.NVML_DEVICE_MIG_ENABLE = 1
    function("nvmlInit", lambda: None)
    function("nvmlDeviceGetHandleByUUID", find)
    function("nvmlDeviceGetMigMode", lambda card: [int(split), int(split)])
    function("nvmlDeviceGetTotalEnergyConsumption", {"card": drawn}.__getitem__)
    return module


@pytest.fixture
def card(monkeypatch):
    """Return a function that puts a driver in the place of NVML."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(uuid=IDENTIFIER)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    return lambda nvml: monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_energy_is_that_of_the_card_in_joules(card):
    card(driver(1500))
    before = energy_joules("cuda")
    card(driver(4000))
    assert (before, energy_since(before, "cuda")) == (1.5, 2.5)
    assert energy_since(None, "cuda") is None


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetTotalEnergyConsumption"])
def test_energy_is_unknown_without_a_driver_or_a_counter(card, fails):
    card(driver(1500, fails))
    assert energy_joules("cuda") is None
    assert energy_since(1.0, "cuda") is None


def test_energy_of_another_card_is_not_taken(card, monkeypatch):
    card(driver(1500))
    other = SimpleNamespace(uuid="another")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: other)
    assert energy_joules("cuda") is None


@pytest.mark.parametrize("split", [False, True])
def test_energy_of_a_slice_is_unknown_as_the_counter_is_that_of_the_card(card, split):
    card(driver(1500, fails="", split=split))
    assert energy_joules("cuda") == (None if split else 1.5)


def test_energy_of_a_cpu_is_unknown_and_needs_no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_joules("cpu") is None
