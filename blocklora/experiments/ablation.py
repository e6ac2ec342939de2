"""Ablation of rank, blocks and partition: many adapters are compared by their average accuracy."""

from collections.abc import Iterator

from blocklora.publish.catalogue import figure, table
from blocklora.study.model import Study
from blocklora.study.run import Test

name = "ablation"
measures = ()
items = (
    table("ablation", "Accuracy", ("runs",), "blocklora.publish.tables.ablation:ablation_table"),
    figure("ablation", "Accuracy", ("runs",), "blocklora.publish.figures.ablation:ablation_figure"),
)


def by_itself(study: Study) -> bool:
    """Return whether the study has more adapters than LoRA and one Block-LoRA."""
    return len(study.adapter_methods) > 2


def tests(study: Study) -> Iterator[Test]:
    """Yield no test: every run is tested on its own dataset anyway."""
    return iter(())
