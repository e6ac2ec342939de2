import csv
from dataclasses import replace
from math import log, prod, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocklora.adapters.adapter import Adapter
from blocklora.csvfiles import read_rows, write_rows
from blocklora.errors import UserError
from blocklora.study.run import Run
from blocklora.theory.bounds import bound_rows, counts, factor_parameters, information_bound
from blocklora.theory.gaps import gap_rows
from blocklora.theory.measures import columns_of
from tests.tiny import LORA

VIT_B16 = {"vision": (12, 768), "text": (12, 512)}
VIT_L14 = {"vision": (24, 1024), "text": (12, 768)}
CLIP_LORA = replace(LORA, rank=2)

shapes = st.fixed_dictionaries(
    {t: st.tuples(st.integers(1, 4), st.sampled_from([16, 32, 48])) for t in ("vision", "text")}
)
configs = st.builds(
    lambda inner, blocks, partition, matrices, towers: replace(
        LORA,
        rank=inner * blocks if partition == "rank" else inner,
        blocks=blocks,
        partition=partition,
        matrices=matrices,
        towers=towers,
    ),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["rank", "input"]),
    st.sampled_from([("q",), ("q", "v"), ("q", "k", "v", "o")]),
    st.sampled_from([("vision",), ("text",), ("vision", "text")]),
)


def counted_parameters(config, shapes):
    return Adapter.initialise(config, shapes, torch.Generator()).trainable_parameters


def test_published_parameter_counts():
    # OrthoAdapt's protocol gives 184,320 for CLIP-LoRA on ViT-B/16 and 405,504 on ViT-L/14.
    assert counted_parameters(CLIP_LORA, VIT_B16) == 184_320
    assert counted_parameters(CLIP_LORA, VIT_L14) == 405_504
    block = replace(CLIP_LORA, blocks=2)
    assert counted_parameters(block, VIT_B16) == 138_240
    assert sum(factor_parameters(block.merged, VIT_B16)) == 92_160


@given(configs, shapes)
def test_formula_equals_the_adapter_of_the_model(config, shapes):
    down, up = factor_parameters(config, shapes)
    by_matrix = sum(
        layers * len(config.matrices) * sum(map(prod, config.factor_shapes(width, width)))
        for tower, (layers, width) in shapes.items()
        if tower in config.towers
    )
    assert counted_parameters(config, shapes) == down + up == by_matrix


def test_layer_range_beyond_the_model_is_refused():
    with pytest.raises(UserError, match="beyond the text tower"):
        counts({"lora": replace(CLIP_LORA, layers=(0, 12), towers=("text",))}, VIT_B16)


def test_bound_equals_the_lemma_written_out():
    # Zhu et al. 2024, Lemma 4.5: sqrt(2 r q sigma^2 ln 2 / n · sum over matrices (d_in + d_out))
    total = sum(3 * 12 * (d + d) for d in (768, 512))
    lemma = sqrt(2 * 2 * 32 * 0.25 * log(2) / 16_000 * total)
    assert information_bound(184_320, 16_000) == pytest.approx(lemma, rel=1e-12)


def test_both_partitions_have_equal_parameters_and_only_one_merges():
    found = {c.method: c for c in counts({"block": replace(CLIP_LORA, blocks=2)}, VIT_B16)}
    assert {"block", "block_input"} <= set(found)
    assert found["block"].parameters == found["block_input"].parameters == 138_240
    assert (found["block"].effective, found["block_input"].effective) == (92_160, 138_240)


def test_a_partition_that_is_a_method_of_its_own_is_not_repeated():
    block = replace(CLIP_LORA, blocks=2)
    methods = {"block": block, "by_input": replace(block, partition="input")}
    found = {count.method for count in counts(methods, VIT_B16)}
    assert found >= {"block", "by_input"}
    assert not found & {"block_input", "by_input_rank"}


@pytest.mark.parametrize(
    "block",
    [
        replace(LORA, rank=6, blocks=3),  # 512 is no multiple of 3
        replace(LORA, rank=3, blocks=2, partition="input"),
    ],
)
def test_a_partition_that_does_not_fit_is_left_out(block):
    assert [count.method for count in counts({"block": block}, VIT_B16)] == ["block"]


def test_training_one_factor_of_square_matrices_divides_the_bound_by_sqrt_two():
    rows = list(bound_rows("b", counts({"lora": CLIP_LORA}, VIT_B16), {"eurosat": 10}, [4]))
    bound = {row["method"]: row["bound"] for row in rows}
    assert bound["lora_b_only"] == pytest.approx(bound["lora"] / sqrt(2))
    assert bound["lora_a_only"] == pytest.approx(bound["lora"] / sqrt(2))


@pytest.mark.parametrize(("blocks", "ratio"), [(1, 1), (2, 0.866), (4, 0.791), (8, 0.750)])
def test_ratio_to_lora_for_square_matrices(blocks, ratio):
    methods = {"block": replace(CLIP_LORA, rank=8, blocks=blocks)}
    row = next(bound_rows("b", counts(methods, VIT_B16), {"dtd": 47}, [1]))
    assert row["ratio_to_lora"] == pytest.approx(ratio, abs=5e-4)
    assert row["effective_ratio_to_lora"] == pytest.approx(blocks**-0.5)


def test_rows_scale_with_shots_and_classes():
    rows = list(bound_rows("b", counts({"l": CLIP_LORA}, VIT_B16), {"a": 10, "b": 40}, [1, 4]))
    assert all(tuple(row) == columns_of("bounds") for row in rows)
    bound = {(r["dataset"], r["shots"]): r["bound"] for r in rows if r["method"] == "l"}
    assert bound["a", 4] == bound["b", 1] == pytest.approx(bound["a", 1] / 2)


RUN = Run("b", "dtd", "block", 4, 1)
ROW = {"train_accuracy": "0.9", "test_accuracy": "0.6", "trainable_parameters": "138240"}
BOUND = {
    "backbone": "b",
    "dataset": "dtd",
    "method": "block",
    "shots": "4",
    "parameters": "138240",
    "bound": "2.5",
}


def test_gap_is_training_minus_test_accuracy():
    (row,) = gap_rows([(RUN, ROW)], [BOUND])
    assert tuple(row) == columns_of("gaps")
    assert row["gap"] == pytest.approx(0.3)
    assert row["vacuous"] is True
    (row,) = gap_rows([(RUN, ROW)], [{**BOUND, "bound": "0.99"}])
    assert row["vacuous"] is False


def test_a_run_with_other_parameters_than_its_bound_is_refused():
    with pytest.raises(UserError, match=r"b/dtd/block/4shot/seed1 trained 138240 .* for 92160"):
        list(gap_rows([(RUN, ROW)], [{**BOUND, "parameters": "92160"}]))


def test_a_run_without_bound_is_named():
    with pytest.raises(UserError, match="b/dtd/block/4shot/seed1 has no row"):
        list(gap_rows([(RUN, ROW)], []))


def test_rows_survive_a_file(tmp_path):
    write_rows(tmp_path / "x.csv", ("a", "b", "c"), [{"a": 0.1 + 0.2, "b": True, "c": None}])
    assert read_rows(tmp_path / "x.csv", ("a",)) == [
        {"a": "0.30000000000000004", "b": "true", "c": ""}
    ]
    assert float(next(csv.DictReader((tmp_path / "x.csv").open()))["a"]) == 0.1 + 0.2


def test_faulty_files_are_named(tmp_path):
    path = tmp_path / "x.csv"
    with pytest.raises(UserError, match=r"x\.csv: no such file"):
        read_rows(path, ("a",))
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"x\.csv: the column c is missing"):
        read_rows(path, ("a", "c"))
    path.write_text("a,b\n1,2\n1\n")
    with pytest.raises(UserError, match=r"x\.csv, line 3"):
        read_rows(path, ("a", "b"))
