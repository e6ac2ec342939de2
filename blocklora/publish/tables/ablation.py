"""The ablation table: average accuracy over ranks, blocks and partitions."""

from collections.abc import Mapping

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.accuracy import measured_cells
from blocklora.publish.published import AVERAGE, method_label
from blocklora.publish.render import Cell, Section, Table, cells, mark_best
from blocklora.publish.results import Results, caption_of
from blocklora.study.model import Study
from blocklora.study.pairs import merged_pairs


def ablation_frame(results: Results) -> pd.DataFrame:
    """Return the average accuracy of each adapter method and shot count, with its settings.

    Columns: backbone, method, merges (the Block-LoRA that this LoRA is with merged arms, or
    empty), label, partition, rank, blocks, alpha, parameters, shots, mean, std, low, high, seeds,
    expected_seeds; accuracies in percent, averaged over the study's datasets. Sorted by rank,
    blocks and partition, a merged LoRA right after its Block-LoRA.
    """
    study = results.study
    merges = {lora: block for block, lora in merged_pairs(study)}
    averages = measured_cells(results)
    averages = averages[(averages["dataset"] == AVERAGE) & (averages["shots"] > 0)]
    settings = pd.DataFrame(
        [
            {"method": name, "merges": merges.get(name, ""), "place": _place(study, merges, name)}
            | {
                key: getattr(study.methods[name].adapter, key)
                for key in ("partition", "rank", "blocks", "alpha")
            }
            for name in study.adapter_methods
        ]
    )
    parameters = (
        results.runs.groupby(["backbone", "method"])["trainable_parameters"]
        .first()
        .rename("parameters")
        .reset_index()
    )
    frame = averages.merge(settings, on="method").merge(
        parameters, on=["backbone", "method"], how="left"
    )
    columns = ["backbone", "method", "merges", "label", "partition", "rank", "blocks", "alpha"]
    columns += ["parameters", "shots", "mean", "std", "low", "high", "seeds", "expected_seeds"]
    ordered = frame.sort_values(["backbone", "place", "shots"], kind="stable", ignore_index=True)
    return ordered[columns]


def _place(study: Study, merges: Mapping[str, str], method: str) -> tuple[int, int, str, bool]:
    """Return what methods are sorted by."""
    adapter = study.methods[merges.get(method, method)].adapter
    return adapter.rank, adapter.blocks, adapter.partition, method in merges


def ablation_table(results: Results) -> Table:
    """Return the table of average accuracy over rank and blocks, a column per shot count."""
    frame = ablation_frame(results)
    sections = []
    for backbone, group in frame.groupby("backbone", sort=False):
        grid = {key: rows.set_index("shots") for key, rows in group.groupby("method", sort=False)}
        marks = {
            shots: mark_best([rows.loc[shots, "mean"] for rows in grid.values()])
            for shots in results.study.shots
        }
        lines = []
        for number, (method, rows) in enumerate(grid.items()):
            first = rows.iloc[0]
            partition = formats.DASH if first["blocks"] == 1 else first["partition"]
            line = [Cell(method_label(method)), Cell(partition)]
            line += cells(str(first["rank"]), str(first["blocks"]), f"{first['alpha']:.4g}")
            line.append(Cell(formats.count(first["parameters"])))
            for shots in results.study.shots:
                row = rows.loc[shots]
                text = formats.percent(row["mean"], row["std"], row["seeds"], row["expected_seeds"])
                line.append(Cell(text, marks[shots][number]))
            lines.append(line)
        sections.append(Section(backbone, lines))
    notes = [results.missing_note([run for run in results.missing if run.shots])]
    if frame["merges"].any():
        notes.append(
            "A row of LoRA right after Block-LoRA by rank is what the latter is once its arms, "
            "copies of each other, are merged: rank r/n and alpha α√n."
        )
    return Table(
        name="ablation",
        caption=caption_of(
            results.study,
            "Rank and blocks: test accuracy in percent, averaged over the datasets, mean ± "
            "standard deviation over seeds; measured. One block is LoRA. Best of each column in "
            "bold, second best underlined.",
        ),
        columns=["method", "partition", "rank r", "blocks n", "alpha", "parameters"]
        + [formats.shots(k) for k in results.study.shots],
        sections=sections,
        data=frame.drop(columns="label"),
        notes=[note for note in notes if note],
        text_columns=2,
    )
