"""Accuracy in percent per backbone, method, shots and dataset: measured and published."""

from dataclasses import asdict
from math import nan

import pandas as pd

from blocklora.publish.published import AVERAGE, method_label, names, published_for
from blocklora.publish.results import Results
from blocklora.publish.statistics import summarise
from blocklora.study.model import Study

CELL_COLUMNS = [
    *("backbone", "method", "label", "shots", "dataset", "mean", "std", "low", "high"),
    *("seeds", "expected_seeds", "kind", "text", "source"),
]


def seed_table(results: Results) -> pd.DataFrame:
    """Return one row per (backbone, method, shots, seed), one column per dataset, in percent.

    The column "average" is the mean over all datasets of the study, and NaN where one of them is
    missing: an average over fewer datasets is no average of the study.
    """
    keys = ["backbone", "method", "shots", "seed"]
    table = results.runs.pivot(index=keys, columns="dataset", values="test_accuracy") * 100
    table = table.reindex(columns=list(results.study.datasets))
    table[AVERAGE] = table.mean(axis=1, skipna=False)
    return table


def measured_cells(results: Results) -> pd.DataFrame:
    """Return the mean and spread over seeds of every cell the study asks for.

    Columns: `CELL_COLUMNS`; `mean` to `high` are in percent, `low` and `high` bound the 95 % t
    interval over seeds, `seeds` counts the runs behind the mean, `kind` is "measured". A cell
    without runs has a mean of NaN. The average over datasets is taken per seed, so that its
    spread is that of the average.
    """
    table = seed_table(results)
    values = {
        (*key, dataset): group[dataset]
        for key, group in table.groupby(level=["backbone", "method", "shots"])
        for dataset in table.columns
    }
    rows = []
    origin = {"kind": "measured", "text": "", "source": str(results.path("runs"))}
    for backbone, method, shots in cell_keys(results.study):
        expected = 1 if shots == 0 else len(results.study.seeds)
        for dataset in table.columns:
            summary = asdict(summarise(values.get((backbone, method, shots, dataset), [])))
            cell = {"backbone": backbone, "method": method, "shots": shots, "dataset": dataset}
            seeds = {"seeds": summary.pop("count"), "expected_seeds": expected}
            rows.append(cell | summary | seeds | {"label": method_label(method)} | origin)
    return pd.DataFrame(rows, columns=CELL_COLUMNS)


def cell_keys(study: Study) -> list[tuple[str, str, int]]:
    """Return the (backbone, method, shots) of a study in its order; zero-shot has 0 shots."""
    return list(dict.fromkeys((run.backbone, run.method, run.shots) for run in study.runs()))


def published_cells(study: Study, backbone: str) -> pd.DataFrame:
    """Return the published accuracies comparable with a backbone of the study.

    Columns: `CELL_COLUMNS`. `text` keeps the digits of the source. Where the study's datasets
    are not the 11 of the published averages, the average of a method that has a value on each of
    them is computed here, and its `kind` is "derived" instead of "published".
    """
    cells = published_for(study, backbone).rename(columns={"percent": "mean"})
    cells = cells.assign(
        backbone=backbone,
        label=cells["method"].replace(names()["published"]),
        std=nan,
        low=nan,
        high=nan,
        expected_seeds=cells["seeds"],
        kind="published",
    )
    derived = []
    for _, group in cells.groupby(["method", "shots"], sort=False):
        if set(group["dataset"]) == set(study.datasets):
            mean = group["mean"].mean()
            average = {"dataset": AVERAGE, "mean": mean, "kind": "derived", "text": f"{mean:.1f}"}
            derived.append(group.iloc[[0]].assign(**average))
    return pd.concat([cells, *derived], ignore_index=True)[CELL_COLUMNS]


def paired_differences(results: Results, method: str, baseline: str, backbone: str) -> pd.DataFrame:
    """Return accuracy of `method` minus that of `baseline`, in points, averaged over seeds.

    One row per shot count, one column per dataset; only seeds that both have are used, and a
    cell without any is NaN.
    """
    table = seed_table(results).drop(columns=AVERAGE)
    if not {method, baseline} <= set(table.index.get_level_values("method")):
        empty = pd.Index(results.study.shots, name="shots")
        return pd.DataFrame(nan, index=empty, columns=list(results.study.datasets))
    measured = table.xs(backbone, level="backbone")
    difference = measured.xs(method, level="method") - measured.xs(baseline, level="method")
    means = difference.groupby(level="shots").mean()
    return means.reindex(list(results.study.shots))
