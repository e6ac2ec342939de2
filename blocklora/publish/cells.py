"""Accuracy in percent for each backbone, method, shot count and dataset: measured and published."""

from dataclasses import asdict
from math import nan

import pandas as pd

from blocklora.publish.published_accuracies import (
    AVERAGE,
    has_paper_datasets,
    load_published,
    method_label,
    names,
    published_backbone,
)
from blocklora.publish.results import Results
from blocklora.publish.statistics import summarise
from blocklora.study.study import Study

CELL_COLUMNS = [
    *("backbone", "method", "label", "shots", "dataset", "mean", "std", "low", "high"),
    *("seeds", "expected_seeds", "kind", "text", "source"),
]


def seed_table(results: Results) -> pd.DataFrame:
    """Return the accuracies in percent, with a row per seed and a column per dataset.

    The index has the levels backbone, method, shots and seed. The column "average" is the mean over
    all datasets of the study. It is NaN where a dataset is missing, because an average over fewer
    datasets could not be compared with the others.
    """
    keys = ["backbone", "method", "shots", "seed"]
    table = results.runs.pivot(index=keys, columns="dataset", values="test_accuracy") * 100
    table = table.reindex(columns=list(results.study.datasets))
    table[AVERAGE] = table.mean(axis=1, skipna=False)
    return table


def measured_cells(results: Results) -> pd.DataFrame:
    """Return the mean and spread over seeds for every cell of the study.

    Columns: `CELL_COLUMNS`. `mean` to `high` are in percent; `low` and `high` bound the 95 % t
    interval over seeds; `seeds` counts the runs behind the mean; `kind` is "measured". A cell
    without runs has a mean of NaN. The average over datasets is taken for each seed first, and its
    spread is the spread of these averages.
    """
    study, table = results.study, seed_table(results)
    groups = dict(list(table.groupby(level=["backbone", "method", "shots"])))
    # In the order of the study; zero-shot has 0 shots.
    keys = dict.fromkeys((run.backbone, run.method, run.shots) for run in study.runs())
    rows = []
    for backbone, method, shots in keys:
        found = groups.get((backbone, method, shots), table[:0])
        cell = {
            "backbone": backbone,
            "method": method,
            "label": method_label(method),
            "shots": shots,
            "expected_seeds": len(study.seeds) if shots else 1,
            "kind": "measured",
            "text": "",
            "source": str(results.path("runs")),
        }
        for dataset in table.columns:
            rows.append(cell | {"dataset": dataset} | asdict(summarise(found[dataset])))
    return pd.DataFrame(rows).rename(columns={"count": "seeds"})[CELL_COLUMNS]


def published_cells(study: Study, backbone: str) -> pd.DataFrame:
    """Return the published accuracies that are comparable with a backbone of the study.

    Columns: `CELL_COLUMNS`. `mean` is in percent, and `text` keeps the digits of the source. There
    are no rows for a backbone that no publication used. If the study has other datasets than the 11
    of the published averages, the average of a method is computed here from its values on the
    study's datasets, provided that all of them are known. Its `kind` is then "derived" instead of
    "published".
    """
    table = load_published()
    kept = {*study.datasets} | ({AVERAGE} if has_paper_datasets(study) else set())
    comparable = table["backbone"] == published_backbone(study, backbone)
    cells = table[comparable & table["dataset"].isin(kept)].rename(columns={"percent": "mean"})
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


def all_published_cells(study: Study) -> pd.DataFrame:
    """Return the published accuracies that are comparable with any backbone of the study."""
    return pd.concat([published_cells(study, name) for name in study.backbones], ignore_index=True)


def paired_differences(results: Results, method: str, baseline: str, backbone: str) -> pd.DataFrame:
    """Return the accuracy of `method` minus that of `baseline`, in points, averaged over seeds.

    There is one row per shot count and one column per dataset. Only seeds that both methods have
    are used, and a cell without such a seed is NaN.
    """
    table = seed_table(results).drop(columns=AVERAGE)
    level = table.index.get_level_values
    ours, theirs = (
        table[(level("backbone") == backbone) & (level("method") == name)].droplevel([0, 1])
        for name in (method, baseline)
    )
    means = (ours - theirs).groupby(level="shots").mean()
    return means.reindex(list(results.study.shots))
