"""The catalogue of tables and figures, from which the command line and the workflow follow.

The items here do not depend on an experiment; those of experiments are in `blocklora/experiments/`,
which puts both together. Nothing heavy is imported before an item is made.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from blocklora.publish.inputs import PREDICTIONS, evidence_file, final_tests, predictions_file
from blocklora.study.run import Test
from blocklora.study.study import Study

CURVES = 7  # the most methods whose curves readers can tell apart
MATRICES = 4  # the most methods whose panels fit side by side


def always(study: Study) -> bool:
    """Return True, because every study has the item."""
    return True


def few_methods(study: Study) -> bool:
    """Return whether a figure can show a curve for each method of the study."""
    return len(study.methods) <= CURVES


def has_published_backbone(study: Study) -> bool:
    """Return whether there are published numbers for a backbone of the study."""
    return any(entry.family.published_as(name) for name, entry in study.backbones.items())


@dataclass(frozen=True)
class Item:
    """A table or a figure.

    Attributes:
        entry: Its name on the command line, and the name of its caption in `workflow/report/`.
        kind: "table" or "figure".
        section: The section of the report that shows it.
        needs: The inputs that it is made from: "runs" (runs.csv), names of CSV files of the theory
            step (without .csv), or "predictions", the predictions of `tests`.
        make: The function that makes it from `Results` and its options, as "module:function".
        options: The other arguments of the function: "shots" (the workflow makes a table for each
            shot count), "published" (it also shows published numbers), "backbone" (all figures).
        when: The function that tells whether a study has the item.
        tests: The function that returns the tests whose predictions are needed.
        shots: The shot count, if the item is the table for a single one.
    """

    entry: str
    kind: str
    section: str
    needs: tuple[str, ...]
    make: str
    options: tuple[str, ...] = ()
    when: Callable[[Study], bool] = always
    tests: Callable[[Study], Iterable[Test]] = final_tests
    shots: int | None = None

    @property
    def name(self) -> str:
        """The stem of the names of its files."""
        return self.entry if self.shots is None else f"{self.entry}-{self.shots}shot"

    @property
    def rule(self) -> str:
        """The name of its rule in the workflow."""
        return f"{self.kind}_{self.name}".replace("-", "_")

    @property
    def module(self) -> str:
        """The module of the function that makes it."""
        return self.make.partition(":")[0]

    @property
    def arguments(self) -> str:
        """The arguments of the command by which the workflow makes it, except for the backbone."""
        shots = "" if self.shots is None else f" --shots {self.shots}"
        return f"{self.entry}{shots}{' --published' * ('published' in self.options)}"

    def values(self, backbone: str | None = None) -> dict[str, Any]:
        """Return the options of the function with the values that they have in the workflow."""
        found = {"shots": self.shots, "published": True, "backbone": backbone}
        return {option: found[option] for option in self.options}

    def files(self, study: Study) -> list[str]:
        """Return the paths of the files that it is made from, below the folder of results."""
        found = [evidence_file(name) for name in self.needs if name != PREDICTIONS]
        if PREDICTIONS in self.needs:
            found += [predictions_file(test) for test in self.tests(study)]
        return found

    def maker(self) -> Callable[..., Any]:
        """Import and return the function that makes it."""
        return getattr(import_module(self.module), self.make.partition(":")[2])


def table(entry: str, section: str, needs: tuple[str, ...], make: str, **further: Any) -> Item:
    """Return the item of a table."""
    return Item(entry, "table", section, needs, make, **further)


def figure(
    entry: str,
    section: str,
    needs: tuple[str, ...],
    make: str,
    options: tuple[str, ...] = (),
    **further: Any,
) -> Item:
    """Return the item of a figure, which is drawn for one backbone at a time."""
    return Item(entry, "figure", section, needs, make, ("backbone", *options), **further)


TABLES, FIGURES = "blocklora.publish.tables", "blocklora.publish.figures"
ITEMS = (
    table("statistics", "Accuracy", ("runs",), f"{TABLES}.differences:statistics_table"),
    table(
        "calibration",
        "Accuracy",
        ("runs",),
        f"{TABLES}.differences:calibration_table",
        when=has_published_backbone,
    ),
    table("per-class", "Accuracy", (PREDICTIONS,), f"{TABLES}.classes:per_class_table"),
    figure(
        "confusions",
        "Accuracy",
        (PREDICTIONS,),
        f"{FIGURES}.confusions:confusions_figure",
        when=lambda study: len(study.methods) <= MATRICES,
    ),
    table("cost", "Cost", ("runs", "efficiency"), f"{TABLES}.cost:cost_table"),
    figure("cost", "Cost", ("runs",), f"{FIGURES}.cost:cost_figure"),
    table("efficiency", "Cost", ("efficiency",), f"{TABLES}.cost:efficiency_table"),
    figure("efficiency", "Cost", ("efficiency",), f"{FIGURES}.cost:efficiency_figure"),
    table("bounds", "Theory", ("bounds", "gaps"), f"{TABLES}.theory:bounds_table"),
    figure(
        "bounds",
        "Theory",
        ("bounds", "gaps"),
        f"{FIGURES}.theory:bounds_figure",
        when=few_methods,
    ),
    table("compression", "Theory", ("compression",), f"{TABLES}.theory:compression_table"),
    table("spectra", "Theory", ("spectra",), f"{TABLES}.theory:spectra_table"),
    figure("spectra", "Theory", ("spectra",), f"{FIGURES}.theory:spectra_figure", when=few_methods),
    table("overlaps", "Theory", ("overlaps",), f"{TABLES}.theory:overlaps_table"),
)
# The CSV files that decide the claims.
CLAIMS_NEED = ("runs", "bounds", "gaps", "spectra", "compression", "efficiency")
