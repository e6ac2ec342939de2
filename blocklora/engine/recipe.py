"""The training hyperparameters, apart from those of the adapter."""

from dataclasses import dataclass
from typing import Annotated

from blocklora.fields import Allowed, Count, NotNegative, Positive, Share, pair_of


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run; `studies/paper.yaml` has those of CLIP-LoRA.

    Attributes:
        prompt: template of the class prompts; `{}` is replaced by the class name.
        iterations_per_shot: gradient steps per shot; k shots take k times as many steps.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: initial learning rate of AdamW.
        final_learning_rate: learning rate at the end of the cosine schedule.
        weight_decay: decoupled weight decay, applied to every adapter parameter.
        betas: decay rates of AdamW's first and second moments.
        crop_scale: smallest and largest share of the image area that a random crop covers.
        flip_probability: probability of a horizontal flip.
        logit_scale: factor that multiplies the cosine similarities in the cross-entropy.
        log_every: steps between two rows of the history.
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
