"""The tables and figures that every study has, each described once.

Those of an experiment are described where it is; `blocklora/experiments/` puts both together, and
the command line and the workflow follow. Nothing heavy is imported before an item is made.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from blocklora.publish.places import PREDICTIONS, evidence_file, final_tests, predictions_file
from blocklora.study.model import Study
from blocklora.study.run import Test

CURVES = 7  # as many methods as readers can tell apart in a figure
MATRICES = 4  # as many methods as fit side by side


def always(study: Study) -> bool:
    """Return True: the item belongs to every study."""
    return True


def few_methods(study: Study) -> bool:
    """Return whether a figure can have a curve of each method of the study."""
    return len(study.methods) <= CURVES


def has_published_backbone(study: Study) -> bool:
    """Return whether published numbers are comparable with a backbone of the study."""
    return any(entry.family.published_as(name) for name, entry in study.backbones.items())


@dataclass(frozen=True)
class Item:
    """A table or a figure.

    Attributes:
        entry: its name in the catalogue, on the command line and of its caption in the report.
        kind: "table" or "figure".
        section: the section of the report in which it stands.
        needs: the sources it is made from: "runs" (runs.csv), measures of the theory step by name,
            or "predictions", the predictions of `tests`.
        make: the function that makes it from `Results` and its options, as "module:function".
        options: the further arguments of the function: "shots" (a table for each shot count),
            "published" (numbers of others are shown too), "backbone" (every figure).
        when: tells whether a study has it.
        tests: the tests of a study whose predictions it needs.
        shots: the shot count, for one of the tables that an entry stands for.
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
        """The stem of its files."""
        return self.entry if self.shots is None else f"{self.entry}-{self.shots}shot"

    @property
    def rule(self) -> str:
        """The name of the rule that makes it."""
        return f"{self.kind}_{self.name}".replace("-", "_")

    @property
    def module(self) -> str:
        """The module of the function that makes it."""
        return self.make.partition(":")[0]

    @property
    def arguments(self) -> str:
        """What names it on the command line, published numbers included."""
        shots = "" if self.shots is None else f" --shots {self.shots}"
        return f"{self.entry}{shots}{' --published' * ('published' in self.options)}"

    def values(self, backbone: str | None = None) -> dict[str, Any]:
        """Return the options of the function for the whole study: as `arguments` has them."""
        found = {"shots": self.shots, "published": True, "backbone": backbone}
        return {option: found[option] for option in self.options}

    def files(self, study: Study) -> list[str]:
        """Return the files it is made from, below the folder of the study."""
        found = [evidence_file(name) for name in self.needs if name != PREDICTIONS]
        if PREDICTIONS in self.needs:
            found += [predictions_file(test) for test in self.tests(study)]
        return found

    def maker(self) -> Callable[..., Any]:
        """Import and return the function that makes it."""
        module, _, function = self.make.partition(":")
        return getattr(import_module(module), function)


def table(entry: str, section: str, needs: tuple[str, ...], make: str, **further: Any) -> Item:
    """Return the description of a table."""
    return Item(entry, "table", section, needs, make, **further)


def figure(
    entry: str,
    section: str,
    needs: tuple[str, ...],
    make: str,
    options: tuple[str, ...] = (),
    **further: Any,
) -> Item:
    """Return the description of a figure, which is drawn of one backbone."""
    return Item(entry, "figure", section, needs, make, ("backbone", *options), **further)


TABLES, FIGURES = "blocklora.publish.tables", "blocklora.publish.figures"
ITEMS = (
    table("statistics", "Accuracy", ("runs",), f"{TABLES}.comparison:statistics_table"),
    table(
        "calibration",
        "Accuracy",
        ("runs",),
        f"{TABLES}.comparison:calibration_table",
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
CLAIMS_NEED = ("runs", "bounds", "gaps", "spectra", "compression", "efficiency")
