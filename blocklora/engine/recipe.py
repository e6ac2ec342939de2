"""The training hyperparameters, apart from those of the adapter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from blocklora.fields import (
    Allowed,
    Checked,
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
)


@dataclass(frozen=True)
class Recipe(Checked):
    """The hyperparameters of a run; `studies/paper.yaml` has those of CLIP-LoRA.

    Attributes:
        prompt: Template of the class prompts; `{}` is replaced by the class name.
        iterations_per_shot: Gradient steps per shot; k shots take k times as many steps.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        learning_rate: Initial learning rate of AdamW.
        final_learning_rate: Learning rate at the end of the cosine schedule.
        weight_decay: Decoupled weight decay, applied to every adapter parameter.
        betas: Decay rates of AdamW's first and second moments.
        crop_scale: Smallest and largest share of the image area that a random crop covers.
        flip_probability: Probability of a horizontal flip.
        logit_scale: Factor that turns cosine similarities into logits.
        log_every: Steps between two rows of the history.
    """

    prompt: Annotated[
        str,
        Allowed(
            "a text with one {} for the name of the class",
            {"pattern": r"^[^{}]*\{\}[^{}]*$"},
        ),
    ]
    iterations_per_shot: Count
    batch_size: Count
    learning_rate: Positive
    final_learning_rate: NotNegative
    weight_decay: NotNegative
    betas: Annotated[
        tuple[ShareBelowOne, ShareBelowOne], Allowed("two numbers of at least 0 and below 1")
    ]
    crop_scale: Annotated[
        tuple[PositiveShare, PositiveShare], Allowed("two numbers above 0 and up to 1, ascending")
    ]
    flip_probability: Share
    logit_scale: Positive
    log_every: Count

    def faults(self) -> Iterator[str]:
        """Yield a message for each value that does not fit the others."""
        if self.final_learning_rate > self.learning_rate:
            yield (
                f"final_learning_rate: {self.final_learning_rate:g} is not allowed; it must be at "
                f"most learning_rate, {self.learning_rate:g}"
            )
        smallest, largest = self.crop_scale
        if smallest > largest:
            yield f"crop_scale: [{smallest:g}, {largest:g}] is not allowed; it must ascend"
