"""Few-shot classification: each run is tested on its own dataset."""

from collections.abc import Iterator

from blocklora.publish.catalogue import always, few_methods, figure, table
from blocklora.study.model import Study
from blocklora.study.run import Test

name = "few_shot"
by_itself = always
measures = ()
items = (
    table(
        "fewshot",
        "Accuracy",
        ("runs",),
        "blocklora.publish.tables.fewshot:fewshot_table",
        options=("shots", "published"),
    ),
    figure(
        "accuracy",
        "Accuracy",
        ("runs",),
        "blocklora.publish.figures.accuracy:accuracy_figure",
        options=("published",),
        when=few_methods,
    ),
)


def tests(study: Study) -> Iterator[Test]:
    """Yield no test: every run is tested on its own dataset anyway."""
    return iter(())
