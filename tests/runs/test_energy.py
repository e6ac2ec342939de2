import ctypes
from types import SimpleNamespace

import pytest
import torch

from blocklora.runs.energy import energy_joules, energy_since

IDENTIFIER = "01234567-89ab-cdef-0123-456789abcdef"


def driver(drawn, status=0):
    """Return a stand-in for NVML: one card that has drawn some millijoules, or does not say."""

    def find(identifier, card):
        card._obj.value = 7
        return 0 if identifier == f"GPU-{IDENTIFIER}".encode() else 6

    def read(card, millijoules):
        assert card.value == 7
        millijoules._obj.value = drawn
        return status

    return SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=find,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


@pytest.fixture
def card(monkeypatch):
    """Return a function that puts a driver in the place of NVML."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(uuid=IDENTIFIER)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    return lambda nvml: monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)


def test_energy_is_that_of_the_card_in_joules(card):
    card(driver(1500))
    before = energy_joules("cuda")
    card(driver(4000))
    assert (before, energy_since(before, "cuda")) == (1.5, 2.5)


def test_a_driver_that_does_not_count_reports_nothing(card):
    card(driver(1500, status=3))
    assert energy_joules("cuda") is None
    assert energy_since(1.0, "cuda") is None


def test_another_card_is_not_taken_for_it(card, monkeypatch):
    card(driver(1500))
    other = SimpleNamespace(uuid="another")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: other)
    assert energy_joules("cuda") is None


def test_without_a_driver_or_a_gpu_nothing_is_reported(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert energy_joules("cuda") is None
    assert energy_joules("cpu") is None
