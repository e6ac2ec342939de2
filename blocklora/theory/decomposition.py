"""Singular values and subspaces of trained updates, computed from their thin factors.

With B = Q_b R_b and Aᵀ = Q_a R_a, the singular values of B A are those of the small matrix
R_b R_aᵀ, so no d × d matrix is ever computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.algebra import merge_arms, tile_down
from blocklora.theory.measures import MATRIX


@dataclass(frozen=True)
class Spectrum:
    """The thin singular value decomposition of a matrix.

    Attributes:
        left: Singular vectors of the output side, shape (d_out, inner).
        values: Singular values in descending order, shape (inner,).
        right: Singular vectors of the input side, shape (d_in, inner).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of singular values that are not 0, as numpy's `matrix_rank` decides it."""
        size = max(len(self.left), len(self.right))
        threshold = self.values.max() * size * torch.finfo(self.values.dtype).eps
        return int((self.values > threshold).sum())


def thin_svd(up: Tensor, down: Tensor) -> Spectrum:
    """Decompose `up` (d_out, inner) times `down` (inner, d_in) in float64."""
    output_basis, output_factor = torch.linalg.qr(up.detach().double())
    input_basis, input_factor = torch.linalg.qr(down.detach().double().mT)
    left, values, right = torch.linalg.svd(output_factor @ input_factor.mT, full_matrices=False)
    return Spectrum(output_basis @ left, values, input_basis @ right.mT)


def spectra(adapter: Adapter) -> dict[str, Spectrum]:
    """Return the spectrum of s·ΔW of every adapted matrix, by names like `vision.3.q`."""
    return {
        name: thin_svd(
            adapter.config.scale * merge_arms(up.detach().double()),
            tile_down(down, adapter.config),
        )
        for name, down, up in adapter.matrices()
    }


def effective_rank(values: Tensor) -> float:
    """Return exp(H(p)), where p are the singular values divided by their sum; 0 for a zero matrix.

    This is between 1 and the rank, and equals the rank if all values are equal (Roy & Vetterli
    2007, "The effective rank: a measure of effective dimensionality").
    """
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """Return ||UᵀV||_F² / min(i, j) for orthonormal columns U (d, i) and V (d, j).

    This is 0 for orthogonal subspaces, and 1 if one contains the other (Hu et al. 2022, LoRA, arXiv
    2106.09685, section 7.2, equation (4)).
    """
    return float((first.T @ second).square().sum() / min(first.shape[1], second.shape[1]))


def arms_difference(up: Tensor) -> float:
    """Return the largest difference between the arms in `up`, relative to its largest value.

    `up` has the shape (arms, d_out, inner), and absolute values are compared. The difference is 0
    if all arms are zero.
    """
    largest = up.abs().max()
    return float((up.amax(0) - up.amin(0)).max() / largest) if largest else 0.0


def spectrum_rows(adapter: Adapter, found: dict[str, Spectrum]) -> Iterator[dict[str, Any]]:
    """Yield the rows of spectra.csv for a run, without the columns that identify the run.

    `found` is the result of `spectra` for this adapter. The difference between arms is None for an
    adapter with one arm.
    """
    for name, _, up in adapter.matrices():
        values = found[name].values
        yield {
            **dict(zip(MATRIX, name.split("."), strict=True)),
            "effective_rank": effective_rank(values),
            "frobenius_norm": float(values.square().sum().sqrt()),
            "spectral_norm": float(values.max()),
            "arms_max_relative_difference": arms_difference(up.detach()) if len(up) > 1 else None,
        }


def overlap_rows(
    first: dict[str, Spectrum], second: dict[str, Spectrum]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of overlaps.csv for two runs, without the columns that identify the runs.

    Only matrices with an update in both runs are compared. `chance` is the mean overlap of random
    subspaces of the dimensions i and j, which is max(i, j)/d, since all adapted matrices are d × d.
    """
    for name, one in first.items():
        other = second.get(name)
        if other is None or not (one.rank and other.rank):
            continue
        i, j = one.rank, other.rank
        yield {
            **dict(zip(MATRIX, name.split("."), strict=True)),
            "output_overlap": subspace_overlap(one.left[:, :i], other.left[:, :j]),
            "input_overlap": subspace_overlap(one.right[:, :i], other.right[:, :j]),
            "chance": max(i, j) / len(one.left),
        }
