"""The measures of the theory, an entry each: which CSV files there are, and what they are made of.

The command `blocklora measure`, its rule in the workflow and the readers of the files follow from
the entry. A new measure is an entry here and a module with the function that it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RUN = ("backbone", "dataset", "method", "shots", "seed")
MATRIX = ("tower", "layer", "matrix")


@dataclass(frozen=True)
class Measure:
    """One computation of the theory, and the CSV files that it writes.

    Attributes:
        name: the argument of `blocklora measure`, and the name of the rule.
        about: the name of what is computed, as the object of a sentence.
        compute: `module:function`; the function takes a `Context` (`context.py`) and returns the
            rows of the file, or a mapping from tables to rows where there are several.
        tables: columns of each file, by its name without `.csv`.
        needs: the inputs that must be there first, as `workflow/rules/theory.smk` names them:
            "runs", "adapters", "weights", "manifests" and "shots_pixels"; "class_counts" and
            "prompts" for the files that tell them where they are not known; or another table.
        precise: True if the numbers depend on the precision.
        on_gpu: True if a GPU is used where there is one.
        local: True if it is too short to be submitted to a cluster.
        memory_mb: memory of a job, which grows when it is tried again.
        runtime: the most time that a job takes.
        data: glob patterns of data files of this package that decide numbers, as code does.
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
            about="the information-theoretic bound of the generalization gap, for every dataset, "
            "number of shots and method, the other partitions, and training B or A alone",
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
            about="training minus test accuracy of every adapted run, beside its bound",
            compute="blocklora.theory.gaps:rows",
            tables={"gaps": (*RUN, "train_accuracy", "test_accuracy", "gap", "bound", "vacuous")},
            needs=("runs", "bounds"),
            local=True,
            memory_mb=500,
            runtime="10m",
        ),
        Measure(
            name="spectra",
            about="the spectra of the trained updates and the difference between arms, and how far "
            "Block-LoRA and LoRA share their subspaces",
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
            about="the bits that every trained adapter takes with its training accuracy kept, and "
            "the bound of the error rate that follows from their number",
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
"""By the name of the measure."""


def columns_of(table: str) -> tuple[str, ...]:
    """Return the columns of a CSV file of the theory, given by its name without `.csv`.

    Raises:
        KeyError: no measure writes this table.
    """
    return {
        name: columns for measure in MEASURES.values() for name, columns in measure.tables.items()
    }[table]
