"""The quantities that claims may name."""

from collections.abc import Callable

from blocklora.publish.evidence import Evidence, Measured
from blocklora.publish.quantities import accuracy, cost, theory

QUANTITIES: dict[str, Callable[[Evidence], Measured]] = {
    function.__name__: function
    for function in (
        cost.parameter_share_error,
        cost.largest_parameter_share,
        cost.largest_parameter_saving,
        cost.largest_flops_share,
        cost.smallest_flops_share,
        cost.smallest_memory_share,
        cost.block_lora_imagenet_memory,
        cost.lora_imagenet_memory,
        cost.clip_lora_parameters,
        cost.clip_lora_imagenet_minutes,
        accuracy.margin_to_best_published,
        accuracy.margin_to_prompt_learners,
        accuracy.accuracy_advantage,
        accuracy.distance_from_merged,
        accuracy.calibration_error,
        accuracy.zero_shot_flowers_error,
        accuracy.clip_lora_weak_spots,
        theory.largest_bound_ratio,
        theory.smallest_bound,
        theory.largest_gap_over_bound,
        theory.smallest_compression_bound,
        theory.largest_arms_difference,
        theory.effective_rank_excess,
    )
}
