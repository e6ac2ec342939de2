"""Tables of differences: Block-LoRA minus LoRA, and our CLIP-LoRA minus the published one."""

from math import isnan

import numpy as np
import pandas as pd

from blocklora.publish import formats
from blocklora.publish.cells import all_published_cells, measured_cells, paired_differences
from blocklora.publish.description import Across, Description
from blocklora.publish.published_accuracies import (
    AVERAGE,
    dataset_label,
    is_published_clip_lora,
    method_label,
    names,
)
from blocklora.publish.render import Table
from blocklora.publish.results import Results
from blocklora.publish.statistics import compare, critical_t, holm
from blocklora.study.pairs import Pairs, block_pairs, merged_pairs

ALL_SHOTS = "all"
STATISTICS = Description(
    name="statistics",
    caption="Block-LoRA against LoRA: difference of test accuracy in points, averaged over seeds "
    "and paired by dataset. Computed from measured accuracies.",
    columns=[
        ("shots", "shots", str),
        ("datasets", "datasets", formats.count),
        ("difference", "difference", formats.signed),
        ("95% bootstrap", "bootstrap_low bootstrap_high", formats.interval),
        ("95% t interval", "t_low t_high", formats.interval),
        ("effect size", "effect_size", formats.signed),
        ("Wilcoxon p", "wilcoxon_p", formats.p_value),
        ("permutation p", "permutation_p", formats.p_value),
        ("Holm p", "holm_p", formats.p_value),
        ("detectable", "detectable", formats.number),
    ],
    notes=[
        "Effect size: Cohen's d_z, mean over standard deviation of the differences. Holm p: "
        "permutation p corrected for the number of shot counts and pairs. Detectable: the mean "
        "difference that a paired t-test on as many datasets finds at 5% with 80% probability."
    ],
)


def _deviation(difference: float, deviation: float) -> str:
    text = formats.signed(difference, 1)
    return text if isnan(deviation) else f"{text} ({formats.signed(deviation, 1)})"


CALIBRATION = Description(
    name="calibration",
    caption="Calibration: test accuracy of our CLIP-LoRA (measured) minus that of the CLIP-LoRA "
    "paper (published), in points.",
    columns=[("dataset", "dataset", dataset_label)],
    across=Across("shots", formats.shots, "difference deviation", _deviation),
)


def compare_pairs(results: Results, pairs: Pairs) -> pd.DataFrame:
    """Compare Block-LoRA methods with LoRA methods.

    Columns: backbone, method, baseline, shots (text), those of `compare`, and holm_p. There is one
    row per backbone, pair and shot count, and one ("all") for the mean over shot counts.
    Differences are in points (percent) and averaged over seeds, one per dataset. Holm's correction
    is over the shot counts of all pairs on all backbones. The p value of "all" is not corrected,
    because it summarises the others instead of asking a further question.
    """
    rows = []
    for backbone in results.study.backbones:
        for method, baseline in pairs:
            differences = paired_differences(results, method, baseline, backbone)
            by_shots = {str(shots): row for shots, row in differences.iterrows()}
            by_shots[ALL_SHOTS] = differences.mean(skipna=False)
            for shots, row in by_shots.items():
                key = {"backbone": backbone, "method": method, "baseline": baseline}
                rows.append(key | {"shots": shots} | compare(row.to_numpy()))
    keys = ["backbone", "method", "baseline", "shots"]
    frame = pd.DataFrame(rows, columns=[*keys, *compare([])])
    single = frame["permutation_p"].where(frame["shots"] != ALL_SHOTS)
    frame.insert(frame.columns.get_loc("detectable"), "holm_p", holm(single))
    return frame


def statistics_table(results: Results) -> Table:
    """Return the table of the differences of Block-LoRA and LoRA, paired by dataset."""
    frame = compare_pairs(results, block_pairs(results.study))
    of_merged = merged_pairs(results.study)
    if of_merged:
        frame = pd.concat([frame, compare_pairs(results, of_merged)], ignore_index=True)
    if len(results.study.shots) == 1:
        frame = frame[frame["shots"] != ALL_SHOTS]  # it would repeat the same numbers
    notes = [
        results.missing_note(),
        "A Block-LoRA is compared with LoRA of the same rank, and with LoRA of rank r/n and "
        "alpha α√n, which it equals once its arms are merged. Holm's correction is made for each "
        "of these two comparisons by itself."
        if of_merged
        else None,
        "The study has no Block-LoRA and LoRA that differ in their blocks only."
        if frame.empty
        else None,
    ]
    return STATISTICS.table(
        results.study,
        frame,
        by=("backbone", "method", "baseline"),
        title=lambda backbone, method, baseline: (
            f"{backbone}: {method_label(method)} minus {method_label(baseline)}"
        ),
        notes=notes,
    )


def calibrate(results: Results) -> pd.DataFrame:
    """Compare our CLIP-LoRA with the published one, cell by cell.

    Columns: backbone, method, shots, dataset, measured, std, seeds, published, published_seeds,
    difference, standard_error, deviation, source. Accuracies are in percent, their differences in
    points. The published spread is unknown, so the standard error of the difference takes our
    spread over seeds for both means. `deviation` is the difference in units of its standard error.
    """
    study, measured = results.study, measured_cells(results)
    measured = measured[[is_published_clip_lora(study, name) for name in measured["method"]]]
    published = all_published_cells(study)
    published = published[published["method"] == names()["clip_lora"]["published_as"]]
    pairs = measured.merge(published, on=["backbone", "shots", "dataset"], suffixes=("", "_theirs"))
    difference = pairs["mean"] - pairs["mean_theirs"]
    error = pairs["std"] * np.sqrt(1 / pairs["seeds"] + 1 / pairs["seeds_theirs"])
    return pd.DataFrame(
        {
            **pairs[["backbone", "method", "shots", "dataset"]],
            "measured": pairs["mean"],
            "std": pairs["std"],
            "seeds": pairs["seeds"],
            "published": pairs["mean_theirs"],
            "published_seeds": pairs["seeds_theirs"],
            "difference": difference,
            "standard_error": error,
            "deviation": (difference / error).where(error > 0),
            "source": pairs["source_theirs"],
        }
    )


def calibration_table(results: Results) -> Table:
    """Return the table of our CLIP-LoRA minus the published one, over datasets and shot counts."""
    study, frame = results.study, calibrate(results)
    grid = pd.MultiIndex.from_product(
        [[*study.datasets, AVERAGE], study.shots], names=["dataset", "shots"]
    )
    shown = [frame[:0]]
    for (backbone, method), group in frame.groupby(["backbone", "method"], sort=False):
        cells = group.set_index(grid.names).reindex(grid).reset_index()
        shown.append(cells.assign(backbone=backbone, method=method))
    notes = [_chance_note(len(study.seeds)), _calibration_summary(frame)]
    notes += [*sorted(set(frame["source"])), results.missing_note()]
    if frame.empty:
        notes = ["Nothing to compare: no published CLIP-LoRA has a backbone and settings of ours."]
    return CALIBRATION.table(
        study,
        frame,
        by=("backbone", "method"),
        title=lambda backbone, method: f"{backbone}: {method_label(method)}",
        shown=pd.concat(shown),
        across=study.shots,
        notes=notes,
    )


def _chance_note(seeds: int) -> str:
    if seeds < 2:
        return "A single seed: the standard error of a difference is unknown."
    return (
        "In brackets: the difference in units of its standard error, from our seeds. With "
        f"{seeds} seeds, chance alone puts 5% of the cells beyond ±{critical_t(seeds):.1f}."
    )


def _calibration_summary(frame: pd.DataFrame) -> str | None:
    single = frame[(frame["dataset"] != AVERAGE) & frame["difference"].notna()]
    if single.empty:
        return None
    difference = single["difference"]
    worst = single.loc[difference.abs().idxmax()]
    return (
        f"Over {len(single)} cells: mean {formats.signed(difference.mean())}, mean absolute "
        f"{difference.abs().mean():.2f}, {(difference.abs() <= 0.5).mean():.0%} within 0.5 points, "
        f"largest {formats.signed(worst['difference'])} ({dataset_label(worst['dataset'])}, "
        f"{formats.shots(worst['shots'])})."
    )
