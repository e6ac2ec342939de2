"""The energy a GPU draws, from the counter of its driver."""

import ctypes

import torch


def energy_joules(device: str) -> float | None:
    """Return the energy the GPU has drawn since its driver was loaded, in joules.

    It is that of the whole card, whoever uses it. None without a GPU, and where its driver does
    not count (before Volta). Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
    """
    if device != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    # The driver numbers GPUs otherwise than CUDA does, but both know the identifier.
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    card, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    counted = (
        nvml.nvmlInit_v2() == 0
        and nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}".encode(), ctypes.byref(card))
        == 0
        and nvml.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(millijoules)) == 0
    )
    return millijoules.value / 1000 if counted else None


def energy_since(before: float | None, device: str) -> float | None:
    """Return the energy drawn since `energy_joules` was `before`, in joules; None if not known."""
    now = energy_joules(device)
    return None if before is None or now is None else now - before
