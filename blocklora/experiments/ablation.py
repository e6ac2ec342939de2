"""The ablation of rank, blocks and partition, which compares many adapters by average accuracy."""

from blocklora.publish.catalogue import figure, table
from blocklora.study.study import Study

name = "ablation"
items = (
    table("ablation", "Accuracy", ("runs",), "blocklora.publish.tables.ablation:ablation_table"),
    figure("ablation", "Accuracy", ("runs",), "blocklora.publish.figures.ablation:ablation_figure"),
)


def by_itself(study: Study) -> bool:
    """Return whether the study has more adapters than a pair such as LoRA and one Block-LoRA."""
    return len(study.adapter_methods) > 2
