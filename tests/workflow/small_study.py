"""A small study of two published datasets, for tests of the job graph."""

STUDY = """
name: small
title: A small study
backbones: {ViT-B-16-quickgelu: {source: openai}}
datasets: [dtd, eurosat]
shots: [1]
seeds: [1, 2]
methods:
  zero_shot: {kind: zero_shot}
  clip_lora: &lora
    {kind: adapter, rank: 2, blocks: 1, partition: rank, alpha: 1, dropout: 0.25,
     matrices: [q, k, v], layers: all, towers: [vision, text]}
  block_lora:
    {kind: adapter, rank: 2, blocks: 2, partition: rank, alpha: 1, dropout: 0.25,
     matrices: [q, k, v], layers: all, towers: [vision, text]}
recipe:
  {prompt: a photo of a {}., iterations_per_shot: 500, batch_size: 32, learning_rate: 2.0e-4,
   final_learning_rate: 1.0e-6, weight_decay: 1.0e-2, betas: [0.9, 0.999],
   crop_scale: [0.08, 1], flip_probability: 0.5, logit_scale: 100, log_every: 50}
""".replace("a photo of a {}.", '"a photo of a {}."')

RUNS = "results/small/runs/ViT-B-16-quickgelu"


def computations(jobs):
    """Return the fits and tests among the jobs."""
    return {rule: count for rule, count in jobs.items() if rule.startswith(("fit_", "test_"))}
