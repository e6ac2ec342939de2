"""Projections of the time of whole trainings from the measured seconds of a step.

They are not measurements. They assume that every step takes the same time, and that nothing else
takes any, except for tests where a docstring says so.
"""

from collections.abc import Sequence
from pathlib import Path

from blocklora.csvfiles import read_rows
from blocklora.performance.entries import Facts
from blocklora.performance.protocol import (
    EUROSAT_CLASSES,
    IMAGENET_CLASSES,
    IMAGENET_TEST,
    METHODS,
    RECIPE,
    SEEDS,
    SHOTS,
)

# `blocklora/theory/sources.py` says where it comes from; that module needs packages that the
# benchmark does without.
PROMPT_LENGTHS = Path(__file__).parents[1] / "theory/prompt_lengths.csv"
IMAGENET_STEPS = max(SHOTS) * RECIPE.iterations_per_shot
STEPS_PER_DATASET = METHODS * SEEDS * sum(SHOTS) * RECIPE.iterations_per_shot


def imagenet_minutes(entry: Facts) -> float | None:
    """Return the minutes of a run on ImageNet with the most shots, including its test.

    The result is None if the entry has other numbers of classes or of images in a batch, or if its
    step or its test was not measured.
    """
    fast, test = entry["fast"], entry["test_image_seconds"]
    sizes = entry["classes"], entry["batch_size"]
    if sizes != (IMAGENET_CLASSES, RECIPE.batch_size) or fast is None or test is None:
        return None
    steps = IMAGENET_STEPS * fast["step_seconds"]
    return (steps + entry["test_prompts_seconds"] + IMAGENET_TEST * test) / 60


def paper_hours(entries: Sequence[Facts]) -> Facts | None:
    """Return the hours of all training steps of the paper, or None if they cannot be projected.

    The time of a step is linear in the number of prompt tokens, through the measured steps with the
    numbers of classes of EuroSAT and of ImageNet. `entries` are those of one precision with both
    towers adapted.
    """
    measured = {
        entry["classes"]: (entry["prompt_tokens"], entry["fast"]["step_seconds"])
        for entry in entries
        if entry["batch_size"] == RECIPE.batch_size and entry["fast"]
    }
    if not {EUROSAT_CLASSES, IMAGENET_CLASSES} <= measured.keys():
        return None
    (few, short), (many, long) = measured[EUROSAT_CLASSES], measured[IMAGENET_CLASSES]
    slope = (long - short) / (many - few)
    seconds = [short + slope * (tokens - few) for tokens in _prompt_tokens().values()]
    return {
        "steps": STEPS_PER_DATASET * len(seconds),
        "hours": STEPS_PER_DATASET * sum(seconds) / 3600,
    }


def _prompt_tokens() -> dict[str, int]:
    """Return the number of tokens of all different prompts of each dataset of the paper."""
    tokens: dict[str, int] = {}
    for row in read_rows(PROMPT_LENGTHS, ("dataset", "prompts", "tokens")):
        length = int(row["prompts"]) * int(row["tokens"])
        tokens[row["dataset"]] = tokens.get(row["dataset"], 0) + length
    return tokens
