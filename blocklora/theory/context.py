"""The inputs of measures: a study, its runs, and the files of its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocklora.csvfiles import read_rows
from blocklora.errors import UserError
from blocklora.methods.low_rank import ADAPTER_FILE
from blocklora.study import places
from blocklora.study.run import Run
from blocklora.study.study import Study
from blocklora.theory.measures import RUN


@dataclass(frozen=True)
class Context:
    """A study, the folder of its results, and the device and precision to compute with.

    `device` is "cpu" or "cuda", and `precision` is one of those in
    `blocklora/engine/precisions.py`. docs/architecture.md lists the files of a folder of results.
    """

    study: Study
    results: Path
    device: str = "cpu"
    precision: str = "fp32"

    def adapter(self, run: Run) -> Path:
        """Return the path of the adapter file of a run."""
        return self.results / places.RUNS / run.folder / ADAPTER_FILE

    def manifest(self, dataset: str) -> Path:
        """Return the path of a dataset's manifest, which lists its images."""
        return self.results / places.manifest(dataset)


def adapted_runs(context: Context, columns: Sequence[str] = ()) -> list[tuple[Run, dict[str, str]]]:
    """Return the runs that trained an adapter, each with its row of runs.csv.

    Besides the columns that identify a run and its adapter, the file must have `columns`.

    Raises:
        UserError: runs.csv is missing or damaged, or belongs to another study.
    """
    found, path = [], context.results / "runs.csv"
    for row in read_rows(path, (*RUN, "rank", *columns)):
        if not row["rank"]:
            continue
        try:
            shots, seed = int(row["shots"]), int(row["seed"])
        except ValueError as error:
            raise UserError(
                f"{path}: the file is damaged ({error}); please delete it and run again"
            ) from None
        if row["method"] not in context.study.adapter_methods:
            raise UserError(
                f"{path}: the study has no method {row['method']} with an adapter, only "
                f"{', '.join(context.study.adapter_methods)}; please make the file again"
            )
        found.append((Run(row["backbone"], row["dataset"], row["method"], shots, seed), row))
    return found
