import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocklora.adapters.adapter import Adapter
from blocklora.theory.decomposition import (
    arms_difference,
    effective_rank,
    overlap_rows,
    spectra,
    spectrum_rows,
    subspace_overlap,
)
from blocklora.theory.measures import columns_of
from tests.tiny import LORA

SHAPES = {"vision": (2, 24), "text": (1, 16)}


def filled(config, seed=0, arms_equal=False):
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.initialise(config, SHAPES, generator)
    with torch.no_grad():
        for tower in adapter.towers.values():
            tower.up.normal_(generator=generator)
            if arms_equal:
                tower.up.copy_(tower.up[:, :, :1].expand_as(tower.up))
    return adapter


def rows_of(adapter):
    return list(spectrum_rows(adapter, spectra(adapter)))


configs = st.sampled_from(
    [
        LORA,
        replace(LORA, blocks=2),
        replace(LORA, blocks=4, partition="input"),
        replace(LORA, rank=7, blocks=8, partition="input"),  # more rank than inputs to a slice
    ]
)


@settings(max_examples=20)
@given(configs, st.integers(0, 99))
def test_spectra_equal_those_of_the_dense_update(config, seed):
    adapter = filled(config, seed)
    dense = dict(adapter.updates())
    for name, found in spectra(adapter).items():
        expected = np.linalg.svd(dense[name].numpy(), compute_uv=False)
        np.testing.assert_allclose(found.values, expected[: len(found.values)], atol=1e-12)
        assert np.abs(expected[len(found.values) :]).max() < 1e-12
        assert found.rank == np.linalg.matrix_rank(dense[name].numpy())
        rebuilt = found.left * found.values @ found.right.T
        np.testing.assert_allclose(rebuilt, dense[name], atol=1e-12)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    # Two values of 3:1 have the entropy ln 4 - 3/4 ln 3.
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.zeros(2)) == 0


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_overlap_is_one_for_contained_and_zero_for_orthogonal_subspaces(i, j, seed):
    basis = torch.linalg.qr(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]
    rotation = torch.linalg.qr(torch.randn(max(i, j), max(i, j), dtype=torch.float64))[0]
    larger = basis[:, : max(i, j)] @ rotation
    assert subspace_overlap(basis[:, : min(i, j)], larger) == pytest.approx(1)
    assert subspace_overlap(basis[:, :i], basis[:, i : i + j]) == pytest.approx(0, abs=1e-12)


def test_chance_is_the_mean_overlap_of_random_subspaces():
    generator = torch.Generator().manual_seed(0)
    overlaps = [
        subspace_overlap(
            *(
                torch.linalg.qr(torch.randn(24, k, generator=generator, dtype=torch.float64))[0]
                for k in (2, 4)
            )
        )
        for _ in range(400)
    ]
    rows = overlap_rows(spectra(filled(LORA)), spectra(filled(replace(LORA, rank=2))))
    chance = next(row["chance"] for row in rows if row["tower"] == "vision")
    standard_error = np.std(overlaps) / math.sqrt(len(overlaps))
    assert abs(np.mean(overlaps) - chance) < 5 * standard_error


def test_an_adapter_overlaps_itself_fully():
    rows = list(overlap_rows(spectra(filled(LORA)), spectra(filled(LORA))))
    assert len(rows) == 9
    assert set(columns_of("overlaps")) >= set(rows[0])
    for row in rows:
        assert row["output_overlap"] == pytest.approx(1)
        assert row["input_overlap"] == pytest.approx(1)


def test_untrained_updates_have_no_overlap_and_rank_zero():
    untrained = Adapter.initialise(LORA, SHAPES, torch.Generator())
    assert list(overlap_rows(spectra(untrained), spectra(filled(LORA)))) == []
    assert {row["effective_rank"] for row in rows_of(untrained)} == {0.0}


def test_rows_name_every_matrix_and_measure_the_arms():
    rows = rows_of(filled(replace(LORA, blocks=2), arms_equal=True))
    assert set(columns_of("spectra")) >= set(rows[0])
    assert [(r["tower"], r["layer"], r["matrix"]) for r in rows][3] == ("vision", "1", "q")
    assert {row["arms_max_relative_difference"] for row in rows} == {0.0}
    assert all(r["arms_max_relative_difference"] is None for r in rows_of(filled(LORA)))


def test_difference_of_arms_is_relative_to_the_largest_entry():
    up = torch.tensor([[[2.0], [1.0]], [[2.0], [0.5]]])
    assert arms_difference(up) == pytest.approx(0.25)
    assert arms_difference(torch.zeros(2, 3, 1)) == 0
