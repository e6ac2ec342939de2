"""The energy that a GPU has drawn, as counted by its driver."""

import torch


def energy_joules(device: str) -> float | None:
    """Return the energy in joules that the GPU has drawn since its driver was loaded.

    The driver counts the energy of the whole card, whichever processes use it. Returns None for the
    CPU, for a slice of a card (MIG), and if there is no driver or no counter, as on cards older
    than Volta.
    """
    if device != "cuda":
        return None
    import pynvml

    # The driver may number GPUs differently from CUDA, but both know their UUIDs.
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        if _is_split(card):
            return None
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000  # from millijoules
    except pynvml.NVMLError:
        return None


def _is_split(card: object) -> bool:
    """Return whether a card is split into slices (MIG)."""
    import pynvml

    try:
        return pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:  # it cannot be split
        return False


def energy_since(before: float | None, device: str) -> float | None:
    """Return the joules drawn since `energy_joules` returned `before`, or None if unknown."""
    now = energy_joules(device)
    return None if before is None or now is None else now - before
