from pathlib import Path

import pytest
import yaml

from blocklora.yamlfiles import StrictLoader

DOCUMENT = """
name: small
title: A small study
backbones: {ViT-B-16-quickgelu: {source: openai}}
datasets: [dtd, eurosat]
shots: [1, 4]
seeds: [1, 2]
methods:
  zero_shot: {kind: zero_shot}
  block_lora:
    kind: adapter
    rank: 4
    blocks: 2
    partition: rank
    alpha: 1
    dropout: 0.25
    matrices: [q, v]
    layers: [0, 5]
    towers: [vision]
recipe:
  prompt: a photo of a {}.
  iterations_per_shot: 500
  batch_size: 32
  learning_rate: 2e-4
  final_learning_rate: 1e-6
  weight_decay: 1e-2
  betas: [0.9, 0.999]
  crop_scale: [0.08, 1]
  flip_probability: 0.5
  logit_scale: 100
  log_every: 50
"""


@pytest.fixture
def document():
    """A study without faults, as a document to change."""
    return yaml.load(DOCUMENT, StrictLoader)


@pytest.fixture
def write(tmp_path, document):
    """Write the document, or text, to small.yaml and return the path."""

    def write_study(content=None) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(document, sort_keys=False)
        )
        return path

    return write_study
