"""The hyperparameters of a training, apart from the adapter's."""

from dataclasses import dataclass
from typing import Annotated

from blocklora.fields import Allowed, Count, NotNegative, Positive, Share, pair_of


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
            {"type": "string", "pattern": r"^[^{}]*\{\}[^{}]*$"},
        ),
    ]
    iterations_per_shot: Count
    batch_size: Count
    learning_rate: Positive
    final_learning_rate: Annotated[
        float,
        Allowed("a number of at least 0, at most learning_rate", {"type": "number", "minimum": 0}),
    ]
    weight_decay: NotNegative
    betas: pair_of(
        "two numbers of at least 0 and below 1",
        "a number of at least 0 and below 1",
        minimum=0,
        exclusiveMaximum=1,
    )
    crop_scale: pair_of(
        "two numbers above 0 and up to 1, ascending",
        "a number above 0 and up to 1",
        exclusiveMinimum=0,
        maximum=1,
    )
    flip_probability: Share
    logit_scale: Positive
    log_every: Count
