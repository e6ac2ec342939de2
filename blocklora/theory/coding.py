"""A trained adapter in as few bits as it takes, and what these bits guarantee.

An adapter is written down as follows, so that a decoder with no other knowledge than the
adapter's configuration and the model's shape rebuilds it:

- the step Δ = 2^-e of the quantiser, e in 0…30, or 31 for "uncompressed"   (5 bits);
- for each matrix, whose arms have been summed (this is exact, see `merge_arms`), and each of the
  components σ_j u_j v_jᵀ of B A: whether it is kept                         (1 bit);
- of a kept one σ_j as a half-precision number                               (16 bits), and
  the integers round(σ_j u_j / Δ) and round(σ_j v_j / Δ), the largest of each vector in Elias'
  gamma code, the rest with the adaptive code of Krichevsky & Trofimov (1981, IEEE Trans. Inf.
  Theory 27(2)), whose length has a closed form.

The decoder's component is Δ² round(σ u/Δ) round(σ v/Δ)ᵀ / σ. An error of a vector's entry reaches
the matrix independently of σ, so one step serves all components, and small ones vanish by
themselves, which is where most of the bits are saved. An uncompressed adapter has 32 bits per
number. The lengths are those of a prefix-free code (Σ 2^-bits <= 1), as `occam_bound` needs.
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
STEPS = 2**STEP_BITS - 1
STORED_BITS = 32
SCALE_BITS = 16


@dataclass(frozen=True)
class Compressed:
    """The choice for one run: code length, errors on the training shots, and the bound."""

    bits: float
    train_error: float
    bound: float


def integer_bits(levels: NDArray[np.int64]) -> float:
    """Return the code length of integers that are not all zero, in bits (not rounded up).

    Elias' gamma code of the largest magnitude m, then the Krichevsky–Trofimov mixture over the
    2m + 1 letters −m…m: −log2 of Γ(K/2) / Γ(N + K/2) · Π_letter Γ(count + 1/2) / Γ(1/2).
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
    """The code words of one adapter, one for each step of the quantiser."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._spectra = {
            name: thin_svd(merge_arms(up.detach().double()), down)
            for name, down, up in adapter.matrices()
        }

    @property
    def uncompressed_bits(self) -> int:
        """Length of the word that is the adapter itself, with its arms merged."""
        numbers = sum(down.numel() + up[0].numel() for _, down, up in self.adapter.matrices())
        return STEP_BITS + STORED_BITS * numbers

    def word(self, exponent: int) -> tuple[float, Adapter]:
        """Return the length in bits of the word with step 2^-exponent, and the adapter it means.

        What is not kept is zero, and so are all arms but the first.
        """
        step, bits = 2.0**-exponent, float(STEP_BITS)
        towers = {
            name: Factors(
                tower.first,
                torch.zeros_like(tower.down, requires_grad=False),
                torch.zeros_like(tower.up, requires_grad=False),
            )
            for name, tower in self.adapter.towers.items()
        }
        meant = Adapter(self.adapter.config, towers)
        for name, down, up in meant.matrices():
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
        return bits, meant


def compress(
    adapter: Adapter,
    train_errors: Callable[[Adapter], int],
    samples: int,
    max_loss: float,
    delta: float,
) -> Compressed:
    """Return the code word with the best bound among those that classify about as well.

    Args:
        adapter: the trained adapter.
        train_errors: number of the `samples` unaugmented training shots an adapter misclassifies.
        samples: N.
        max_loss: the most that the error rate on the training shots may exceed the adapter's.
        delta: probability with which the bound may fail.
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
            break  # finer steps take more bits still
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
