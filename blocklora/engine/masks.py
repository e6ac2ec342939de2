"""Dropout masks for the low-rank paths, stored as one bit per matrix.

Each adapted matrix of a layer has its own mask over the same input. Bit j of a byte is set if
matrix j keeps that input, so the masks of all matrices together take one byte per input.

Masks are a function of the key of the step and of the position (layer, token, input). They depend
neither on the device, whose own generator differs from GPU to GPU, nor on the size of the batch.
They are computed by integer arithmetic on tensors, which a CUDA graph can record.
"""

import torch
from torch import Tensor

_BITS = 16  # to which probabilities are rounded
_WEYL = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, as in SplitMix (Steele et al. 2014)
_MULTIPLIER = 0xD6E8FEB86659FD93  # of Degski's mixing function
# The counters of a layer begin at a multiple of 2^40, those of a binary digit at one of 2^36.
_LAYER, _DIGIT = 2**40, 2**36


def draw_masks(layers: int, tokens: int, width: int, dropout: float, key: Tensor) -> Tensor:
    """Return masks, uint8 (layers, tokens, width); each bit is set with probability 1 − dropout.

    The probability is rounded to a multiple of 2^-16 (0.75 is exact). Its binary digits, from last
    to first, decide how words of fair random bits are combined: if a bit x is set with probability
    p, then `x | fair` is set with (1 + p)/2 and `x & fair` with p/2. So 0.75 needs two fair words.

    Args:
        layers: Number of layers.
        tokens: Number of tokens of all sequences.
        width: Number of inputs of each token.
        dropout: Probability that an input is dropped.
        key: The random key of the step, int64 (), on the device of the result.
    """
    device, words = key.device, -(-width // 8)
    keep = round((1 - dropout) * 2**_BITS)
    if keep == 2**_BITS:
        return torch.full((layers, tokens, width), 255, dtype=torch.uint8, device=device)
    masks = torch.zeros(layers, tokens, words, dtype=torch.int64, device=device)
    keys = key + torch.arange(layers, device=device) * _wrapped(_LAYER * _WEYL)
    # On a CPU, the words of one layer stay in its cache. On a GPU, fewer kernels are faster.
    at_a_time = 1 if device.type == "cpu" else layers
    digits = [digit for digit in range(_BITS) if keep % 2 ** (digit + 1)]  # without last zeros
    for part, some in zip(masks.split(at_a_time), keys.split(at_a_time), strict=True):
        for digit in digits:
            combine = part.bitwise_or_ if keep >> digit & 1 else part.bitwise_and_
            combine(_fair_words(some + _wrapped(digit * _DIGIT * _WEYL), tokens, words))
    return masks.view(torch.uint8)[..., :width]


def _fair_words(keys: Tensor, tokens: int, words: int) -> Tensor:
    """Return words of fair random bits, int64 (layers, tokens, words); `keys` is int64 (layers,).

    A word is the key plus its number times an odd constant, after a bijection that mixes the bits:
    x ^= x >> 32, x *= m, x ^= x >> 32, x *= m, x ^= x >> 32, modulo 2^64.
    """
    rows = torch.arange(tokens, device=keys.device) * _wrapped(words * _WEYL)
    columns = torch.arange(words, device=keys.device) * _wrapped(_WEYL)
    x = (keys[:, None] + rows)[..., None] + columns
    low, high = x.view(torch.int32).unflatten(-1, (words, 2)).unbind(-1)
    for _ in range(2):
        low ^= high
        x *= _wrapped(_MULTIPLIER)
    low ^= high
    return x


def _wrapped(number: int) -> int:
    """Return the int64 that equals a number modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def kept(masks: Tensor, matrices: Tensor) -> Tensor:
    """Return 1 where a matrix keeps an input and 0 where it drops it.

    `matrices` are the numbers of the wanted matrices, uint8 (matrices,); the result is uint8
    (matrices, *masks.shape).
    """
    return (masks >> matrices.view(-1, *[1] * masks.ndim)) & 1
