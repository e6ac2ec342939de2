"""Random generators that depend only on the seed, their purpose and the training step.

Every step makes its own generators, so no state is carried from one step to the next, and a
resumed run draws the same numbers as an uninterrupted one.
"""

import zlib

import numpy as np
import torch


def seed_sequence(seed: int, purpose: str, *counters: int) -> np.random.SeedSequence:
    """Return the seed of one generator; `counters` are numbers such as that of the step."""
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *counters])


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a fresh NumPy generator."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose, *counters)))


def torch_generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a fresh torch generator on the CPU."""
    return torch.Generator().manual_seed(integer_seed(seed, purpose, *counters))


def integer_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a random integer in [0, 2^63), for use as a seed or as the key of dropout masks."""
    state = seed_sequence(seed, purpose, *counters).generate_state(1, np.uint64)
    return int(state[0]) & (2**63 - 1)
