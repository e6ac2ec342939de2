"""What measures are computed from: a study, where the files of its results are, and its runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocklora.csvfiles import read_rows
from blocklora.errors import UserError
from blocklora.methods.adapter import ADAPTER_FILE
from blocklora.study import places
from blocklora.study.model import Study
from blocklora.study.run import Run
from blocklora.theory.measures import RUN


@dataclass(frozen=True)
class Context:
    """What a measure is computed from and how; the files are where docs/architecture.md says.

    Attributes:
        study: the study.
        results: folder of its results.
        device: "cpu" or "cuda".
        precision: one of `PRECISIONS` of `blocklora/engine/precisions.py`.
    """

    study: Study
    results: Path
    device: str = "cpu"
    precision: str = "fp32"

    def adapter(self, run: Run) -> Path:
        """Return the adapter file of a run."""
        return self.results / places.RUNS / run.folder / ADAPTER_FILE

    def manifest(self, dataset: str) -> Path:
        """Return the list of a dataset's images."""
        return self.results / places.manifest(dataset)


def adapted_runs(context: Context, columns: Sequence[str] = ()) -> list[tuple[Run, dict[str, str]]]:
    """Return the runs with an adapter, and their rows of runs.csv, which have `columns`.

    Raises:
        UserError: runs.csv is missing, damaged or of another study.
    """
    found, path = [], context.results / "runs.csv"
    for row in read_rows(path, (*RUN, "rank", *columns)):
        if not row["rank"]:
            continue
        try:
            shots, seed = int(row["shots"]), int(row["seed"])
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run again") from None
        if row["method"] not in context.study.adapter_methods:
            raise UserError(
                f"{path}: the study has no adapter {row['method']}; it has "
                f"{', '.join(context.study.adapter_methods)}; make the file again"
            )
        found.append((Run(row["backbone"], row["dataset"], row["method"], shots, seed), row))
    return found
