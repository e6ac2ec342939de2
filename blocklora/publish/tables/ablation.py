"""The ablation table: average accuracy over rank, blocks and partition."""

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.cells import measured_cells
from blocklora.publish.description import Across, Description
from blocklora.publish.published_accuracies import AVERAGE, method_label
from blocklora.publish.render import Table, mark_best
from blocklora.publish.results import Results
from blocklora.study.pairs import merged_pairs

ABLATION = Description(
    name="ablation",
    caption="Rank and blocks: test accuracy in percent, averaged over the datasets, mean ± "
    "standard deviation over seeds; measured. One block is LoRA. Best of each column in "
    "bold, second best underlined.",
    columns=[
        ("method", "method", method_label),
        ("partition", "blocks partition", formats.partition),
        ("rank r", "rank", str),
        ("blocks n", "blocks", str),
        ("alpha", "alpha", "{:.4g}".format),
        ("parameters", "parameters", formats.count),
    ],
    across=Across("shots", formats.shots, "mean std seeds expected_seeds", formats.percent, "mark"),
    text_columns=2,
)


def ablation_frame(results: Results) -> pd.DataFrame:
    """Return the average accuracy of each adapter method and shot count, with its settings.

    Columns: backbone, method, merges (the Block-LoRA that becomes this LoRA when its arms are
    merged, or empty), partition, rank, blocks, alpha, parameters, shots, mean, std, low, high,
    seeds, expected_seeds. Accuracies are in percent, averaged over the study's datasets. The rows
    are sorted by backbone, rank, blocks, partition and shots; the rows of a merged LoRA follow
    those of its Block-LoRA.
    """
    study = results.study
    merges = {lora: block for block, lora in merged_pairs(study)}
    averages = measured_cells(results)
    averages = averages[(averages["dataset"] == AVERAGE) & (averages["shots"] > 0)]
    settings = []
    for name in study.adapter_methods:
        own, sorted_by = (study.methods[key].adapter for key in (name, merges.get(name, name)))
        settings.append(
            {
                "method": name,
                "merges": merges.get(name, ""),
                "place": (sorted_by.rank, sorted_by.blocks, sorted_by.partition, name in merges),
                "partition": own.partition,
                "rank": own.rank,
                "blocks": own.blocks,
                "alpha": own.alpha,
            }
        )
    by_method = results.runs.groupby(["backbone", "method"])["trainable_parameters"]
    parameters = by_method.first().rename("parameters").reset_index()
    frame = averages.merge(pd.DataFrame(settings), on="method")
    frame = frame.merge(parameters, on=["backbone", "method"], how="left")
    ordered = frame.sort_values(["backbone", "place", "shots"], kind="stable", ignore_index=True)
    columns = ["backbone", "method", "merges", "partition", "rank", "blocks", "alpha", "parameters"]
    return ordered[[*columns, "shots", "mean", "std", "low", "high", "seeds", "expected_seeds"]]


def ablation_table(results: Results) -> Table:
    """Return the table of average accuracy over rank and blocks, with a column per shot count."""
    frame = ablation_frame(results)
    notes = [results.missing_note([run for run in results.missing if run.shots])]
    if frame["merges"].any():
        notes.append(
            "A row of LoRA right after a row of Block-LoRA by rank is the LoRA of rank r/n and "
            "alpha α√n that the latter equals once its arms, copies of each other, are merged."
        )
    marks = frame.groupby(["backbone", "shots"])["mean"].transform(mark_best)
    shown = frame.assign(mark=marks)
    return ABLATION.table(
        results.study, frame, shown=shown, across=results.study.shots, notes=notes
    )
