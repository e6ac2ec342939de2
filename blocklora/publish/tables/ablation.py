"""The ablation table: average accuracy over ranks, blocks and partitions."""

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.accuracy import measured_cells
from blocklora.publish.published import AVERAGE, method_label
from blocklora.publish.render import Cell, Section, Table, mark_best
from blocklora.publish.results import Results, caption_of


def ablation_frame(results: Results) -> pd.DataFrame:
    """Return the average accuracy of each adapter method and shot count, with its settings.

    Columns: backbone, method, label, partition, rank, blocks, parameters, shots, mean, std, low,
    high, seeds, expected_seeds; accuracies in percent, averaged over the study's datasets.
    """
    study = results.study
    cells = measured_cells(results)
    cells = cells[(cells["dataset"] == AVERAGE) & (cells["shots"] > 0)]
    settings = pd.DataFrame(
        [
            {
                "method": name,
                "partition": study.methods[name].adapter.partition,
                "rank": study.methods[name].adapter.rank,
                "blocks": study.methods[name].adapter.blocks,
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
    frame = cells.merge(settings, on="method").merge(
        parameters, on=["backbone", "method"], how="left"
    )
    columns = ["backbone", "method", "label", "partition", "rank", "blocks", "parameters", "shots"]
    columns += ["mean", "std", "low", "high", "seeds", "expected_seeds"]
    return frame[columns].sort_values(
        ["backbone", "rank", "blocks", "partition", "shots"], kind="stable", ignore_index=True
    )


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
            line += [Cell(str(first["rank"])), Cell(str(first["blocks"]))]
            line.append(Cell(formats.count(first["parameters"])))
            for shots in results.study.shots:
                row = rows.loc[shots]
                text = formats.percent(row["mean"], row["std"], row["seeds"], row["expected_seeds"])
                line.append(Cell(text, marks[shots][number]))
            lines.append(line)
        sections.append(Section(backbone, lines))
    missing = results.missing_note()
    return Table(
        name="ablation",
        caption=caption_of(
            results.study,
            "Rank and blocks: test accuracy in percent, averaged over the datasets, mean ± "
            "standard deviation over seeds; measured. One block is LoRA. Best of each column in "
            "bold, second best underlined.",
        ),
        columns=["method", "partition", "rank r", "blocks n", "parameters"]
        + [f"{k} shot" + "s" * (k > 1) for k in results.study.shots],
        sections=sections,
        data=frame.drop(columns="label"),
        notes=[missing] if missing else [],
        text_columns=2,
    )
