"""The hyperparameters of a training, apart from the adapter's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a run is trained; the values of CLIP-LoRA stand in `studies/paper.yaml`.

    Attributes:
        prompt: template of the class prompts; `{}` is replaced by the class name.
        iterations_per_shot: gradient steps are this times the shots, whatever the classes.
        batch_size: images per step; the last, smaller batch of an epoch is kept.
        learning_rate: of AdamW, at the start.
        final_learning_rate: reached by a cosine over all steps.
        weight_decay: decoupled, on every adapter parameter.
        betas: of AdamW.
        crop_scale: smallest and largest share of the image area a random crop takes.
        flip_probability: of a horizontal flip.
        logit_scale: factor of the cosines in the cross-entropy.
        log_every: steps between two lines of the history.
    """

    prompt: str
    iterations_per_shot: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    crop_scale: tuple[float, float]
    flip_probability: float
    logit_scale: float
    log_every: int
