"""The measures of the theory, each of which computes CSV files from the results of a study.

The command `blocklora measure` and the rules of the workflow use this list together with the
measures of experiments (`blocklora.experiments.measures`). To add a measure, write a module with a
function that computes it, and add an entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RUN = ("backbone", "dataset", "method", "shots", "seed")
MATRIX = ("tower", "layer", "matrix")


@dataclass(frozen=True)
class Measure:
    """A computation of the theory and the CSV files that it writes.

    Attributes:
        name: The argument of `blocklora measure`, and the name of the rule.
        about: A description of the result, for help texts.
        compute: `module:function`; the function takes a `Context` (`context.py`) and returns the
            rows of the file, or a mapping from tables to rows if there are several files.
        tables: Columns of each file, by the name of the file without `.csv`.
        needs: The inputs by their names in `workflow/rules/theory.smk`: "runs", "adapters",
            "weights", "manifests", "shots_pixels", or another table. "class_counts" and "prompts"
            are the manifests of those datasets whose number of classes, or whose lengths of
            prompts, are not known without them.
        precise: True if the numbers depend on the precision.
        on_gpu: True if it uses a GPU when there is one.
        local: True if it is too short to be submitted to a cluster.
        memory_mb: Memory of a job in MB, which is added once more for every new attempt.
        runtime: Time limit of a job as Snakemake reads it, such as "10m".
        data: Glob patterns, relative to `blocklora/`, of data files that the numbers depend on.
    """

    name: str
    about: str
    compute: str
    tables: Mapping[str, tuple[str, ...]]
    needs: tuple[str, ...]
    precise: bool = False
    on_gpu: bool = False
    local: bool = False
    memory_mb: int = 2000
    runtime: str = "1h"
    data: tuple[str, ...] = ()


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            name="bounds",
            about="the information-theoretic bound on the generalization gap for every dataset, "
            "number of shots and method, for other partitions, and for training only B or only A",
            compute="blocklora.theory.bounds:rows",
            tables={
                "bounds": (
                    *("backbone", "dataset", "method", "shots", "classes", "samples"),
                    *("parameters", "effective_parameters", "bits", "sigma"),
                    *("bound", "effective_bound", "ratio_to_lora", "effective_ratio_to_lora"),
                )
            },
            needs=("class_counts",),
            runtime="10m",
        ),
        Measure(
            name="gaps",
            about="training minus test accuracy of every run with an adapter, and the bound on it",
            compute="blocklora.theory.gaps:rows",
            tables={"gaps": (*RUN, "train_accuracy", "test_accuracy", "gap", "bound", "vacuous")},
            needs=("runs", "bounds"),
            local=True,
            memory_mb=500,
            runtime="10m",
        ),
        Measure(
            name="spectra",
            about="the spectra of the trained updates, the difference between arms, and the "
            "overlap of the subspaces of Block-LoRA and LoRA",
            compute="blocklora.theory.spectra:rows",
            tables={
                "spectra": (
                    *RUN,
                    *MATRIX,
                    *("effective_rank", "frobenius_norm", "spectral_norm"),
                    "arms_max_relative_difference",
                ),
                "overlaps": (
                    *("backbone", "dataset", "shots", "seed", "method", "other_method"),
                    *MATRIX,
                    *("output_overlap", "input_overlap", "chance"),
                ),
            },
            needs=("runs", "adapters"),
            memory_mb=4000,
        ),
        Measure(
            name="compression",
            about="the number of bits to which every trained adapter can be compressed without "
            "losing more than a percentage point of training accuracy, and the resulting bound on "
            "the error rate",
            compute="blocklora.theory.compression:rows",
            tables={
                "compression": (
                    *RUN,
                    *("bits_per_weight", "compressed_bits", "train_error", "guessing_error"),
                    *("bound", "vacuous"),
                )
            },
            needs=("runs", "adapters", "weights", "manifests", "shots_pixels"),
            precise=True,
            on_gpu=True,
            memory_mb=8000,
            runtime="8h",
        ),
        Measure(
            name="efficiency",
            about="parameters, bytes, operations and planned memory of LoRA and Block-LoRA at "
            "several ranks and numbers of blocks, for every dataset",
            compute="blocklora.theory.efficiency:rows",
            tables={
                "efficiency": (
                    *("backbone", "dataset", "classes", "method", "rank", "blocks", "partition"),
                    *("parameters", "adapter_bytes", "optimizer_bytes"),
                    *("flops_per_step_formula", "flops_per_step_counted", "planned_memory_bytes"),
                )
            },
            needs=("prompts",),
            precise=True,
            memory_mb=8000,
            data=("theory/prompt_lengths.csv",),
        ),
    )
}
"""The measures by their names."""


def columns_of(table: str) -> tuple[str, ...]:
    """Return the columns of a CSV file that one of `MEASURES` writes; `table` has no `.csv`."""
    return next(m.tables[table] for m in MEASURES.values() if table in m.tables)
