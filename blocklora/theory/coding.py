"""Compressing a trained adapter into few bits, and the error bound that follows from their number.

A decoder that knows only the configuration of the adapter and the shape of the model can rebuild
the adapter from this code:

- the step Δ = 2^-e of the quantiser, with e in 0…30, or 31 for "uncompressed" (5 bits);
- for each matrix, whose arms have been summed (which is exact, see `merge_arms`), and for each
  component σ_j u_j v_jᵀ of B A, whether it is kept (1 bit);
- for each component that is kept, σ_j in half precision (16 bits), and the integers
  round(σ_j u_j / Δ) and round(σ_j v_j / Δ). The largest integer of a vector uses Elias' gamma code.
  All of them then use the adaptive code of Krichevsky & Trofimov (1981, IEEE Trans. Inf. Theory
  27(2)), whose length has a closed form.

The decoder computes the component as Δ² round(σ u/Δ) round(σ v/Δ)ᵀ / σ. The error of an entry of a
vector has the same effect on the matrix for every σ, so all components share one step. Small
components round to zero, which saves most of the bits. An uncompressed adapter takes 32 bits per
number. The code is prefix-free (Σ 2^-bits <= 1), which `occam_bound` requires.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from blocklora.adapters.adapter import Adapter, Factors
from blocklora.adapters.algebra import merge_arms
from blocklora.theory.decomposition import thin_svd
from blocklora.theory.risk import occam_bound

STEP_BITS = 5
STEPS = 2**STEP_BITS - 1  # the remaining value means "uncompressed"
STORED_BITS = 32  # of a number in an uncompressed adapter
SCALE_BITS = 16  # of σ_j


@dataclass(frozen=True)
class Compressed:
    """The code word that was chosen.

    Attributes:
        bits: Its length in bits.
        train_error: Its error rate on the training images.
        bound: The upper bound on its error rate on new images.
    """

    bits: float
    train_error: float
    bound: float


def integer_bits(levels: NDArray[np.int64]) -> float:
    """Return the code length in bits (not rounded up) of integers that are not all zero.

    The code begins with Elias' gamma code of the largest magnitude m, which takes 2 ⌊log2 m⌋ + 1
    bits. The N integers follow in the Krichevsky–Trofimov mixture over the K = 2m + 1 letters −m…m,
    which takes −log2 of Γ(K/2) / Γ(N + K/2) · Π_letter Γ(count + 1/2) / Γ(1/2) bits.
    """
    largest = int(np.abs(levels).max())
    letters = 2 * largest + 1
    counts = np.unique(levels, return_counts=True)[1]
    log_probability = (
        gammaln(letters / 2)
        - gammaln(len(levels) + letters / 2)
        + (gammaln(counts + 0.5) - gammaln(0.5)).sum()
    )
    return 2 * (largest.bit_length() - 1) + 1 - float(log_probability) / log(2)


class Code:
    """The code words of an adapter, one for each step of the quantiser."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._spectra = {
            name: thin_svd(merge_arms(up.detach().double()), down)
            for name, down, up in adapter.matrices()
        }

    @property
    def uncompressed_bits(self) -> int:
        """The length in bits of the uncompressed code word, in which the arms are merged."""
        numbers = sum(down.numel() + up[0].numel() for _, down, up in self.adapter.matrices())
        return STEP_BITS + STORED_BITS * numbers

    def word(self, exponent: int) -> tuple[float, Adapter]:
        """Return the length in bits of the word with the step 2^-exponent, and its adapter.

        Components that are not kept are zero, and so are all arms but the first.
        """
        step, bits = 2.0**-exponent, float(STEP_BITS)
        towers = {
            name: Factors(tower.first, torch.zeros_like(tower.down), torch.zeros_like(tower.up))
            for name, tower in self.adapter.towers.items()
        }
        decoded = Adapter(self.adapter.config, towers)
        for name, down, up in decoded.matrices():
            spectrum = self._spectra[name]
            vectors = zip(spectrum.left.mT.numpy(), spectrum.right.mT.numpy(), strict=True)
            for index, pair in enumerate(vectors):
                bits += 1
                scale = float(np.float16(spectrum.values[index]))
                left, right = (np.rint(scale * part / step).astype(np.int64) for part in pair)
                if 0 < scale < inf and left.any() and right.any():
                    bits += SCALE_BITS + integer_bits(left) + integer_bits(right)
                    factor = step / scale**0.5
                    up[0, :, index] = torch.from_numpy(left * factor)
                    down[index] = torch.from_numpy(right * factor)
        return bits, decoded


def compress(
    adapter: Adapter,
    train_errors: Callable[[Adapter], int],
    samples: int,
    max_loss: float,
    delta: float,
) -> Compressed:
    """Return the code word with the best bound among those with about the adapter's training error.

    The uncompressed word is returned only if there is no such compressed word.

    Args:
        adapter: The trained adapter.
        train_errors: Returns how many of the `samples` training images an adapter misclassifies.
        samples: N, the number of unaugmented training images.
        max_loss: The largest increase of the error rate on the training images that is allowed, a
            fraction.
        delta: δ < 1/4, the probability with which the bound may fail.
    """
    code = Code(adapter)
    trained = train_errors(adapter)

    def choice(bits: float, errors: int) -> Compressed:
        return Compressed(bits, errors / samples, occam_bound(errors, samples, bits, delta))

    best = choice(code.uncompressed_bits, trained)
    found, tried = False, 0.0
    for exponent in range(STEPS):
        bits, word = code.word(exponent)
        if bits >= code.uncompressed_bits or (
            found and occam_bound(0, samples, bits, delta) >= best.bound
        ):
            break  # because finer steps take even more bits
        if bits == tried:
            continue
        tried = bits
        errors = train_errors(word)
        if errors > trained + max_loss * samples:
            continue
        candidate = choice(bits, errors)
        if not found or candidate.bound < best.bound:
            best, found = candidate, True
    return best
