"""Few-shot classification: each run is tested on its own dataset."""

from blocklora.publish.catalogue import always, few_methods, figure, table

name = "few_shot"
by_itself = always
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
