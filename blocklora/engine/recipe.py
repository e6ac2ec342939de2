"""The hyperparameters of a training, apart from the adapter's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from blocklora.fields import (
    Allowed,
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    refuse,
)


@dataclass(frozen=True)
class Recipe:
    """How a run is trained; the values of CLIP-LoRA stand in `studies/paper.yaml`.

    Attributes:
        prompt: template of the class prompts; `{}` is replaced by the class name.
        iterations_per_shot: gradient steps are this times the shots, whatever the classes.
        batch_size: images per step; the last, smaller batch of an epoch is kept.
        learning_rate: the learning rate of AdamW at the start.
        final_learning_rate: the learning rate that a cosine reaches at the last step.
        weight_decay: decoupled, on every adapter parameter.
        betas: the decay rates of AdamW's first and second moment.
        crop_scale: smallest and largest share of the image area a random crop takes.
        flip_probability: the probability of a horizontal flip.
        logit_scale: factor of the cosines in the cross-entropy.
        log_every: steps between two lines of the history.
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

    def __post_init__(self) -> None:
        """Check what the types of the fields cannot say.

        Raises:
            ValueError: values do not go together.
        """
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if self.final_learning_rate > self.learning_rate:
            yield (
                f"final_learning_rate: {self.final_learning_rate:g} is not allowed; it must be at "
                f"most learning_rate, {self.learning_rate:g}"
            )
        smallest, largest = self.crop_scale
        if smallest > largest:
            yield f"crop_scale: [{smallest:g}, {largest:g}] is not allowed; it must ascend"
