"""Block-LoRA for few-shot CLIP: adapters, training, bounds and the tables of the paper."""

__version__ = "0.1.0"
