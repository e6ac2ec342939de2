"""The benchmark counts operations and bytes."""

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from blocklora.engine.fast import Chunks
from blocklora.performance import measure as measuring
from blocklora.performance.measure import settings
from blocklora.performance.traffic import Traffic
from tests.tiny import SHAPE


def test_operations_and_bytes_are_those_counted_by_hand():
    with FakeTensorMode():
        x, w, q = torch.empty(4, 8), torch.empty(8, 2), torch.empty(1, 1, 3, 4)
        with Traffic() as traffic:
            y = x @ w  # reads 32 and 16 numbers, writes 8
            z = y.T.contiguous().view(8)[2:]  # the copy reads and writes 8; views do nothing
            z.add_(1)  # reads and writes 6
            torch.empty(100).copy_(w[0, 0].expand(100))  # reads 100 and 1, writes 100
            F.scaled_dot_product_attention(q, q, q)  # reads 3 × 12; writes 12, and a sum per row
    assert traffic.operations == {"products": 1, "attention": 1, "other": 3}
    other = 2 * 8 + 2 * 6 + 201
    assert traffic.bytes == {"products": 4 * 56, "attention": 4 * (36 + 12 + 3), "other": 4 * other}
    with FakeTensorMode(), Traffic() as traffic:
        torch.empty(3, dtype=torch.float16) + torch.empty(3, dtype=torch.float32)
    assert traffic.bytes["other"] == 3 * (2 + 4 + 4)


def test_a_step_is_counted_without_what_is_done_once():
    """A step of a vision adapter does nothing with text, whatever the number of classes."""
    few, many = settings(SHAPE, [4, 40], [2], ["vision"], ["fp32"])
    counts = [measuring.count_step(setting, Chunks()) for setting in (few, many)]
    products = [traffic.operations["products"] for _, traffic in counts]
    assert products[0] == products[1]
    # The cosines of 2 images with 36 more features of 24 numbers, and the gradient of the images.
    assert counts[1][0] - counts[0][0] == 2 * (2 * 2 * 36 * 24)
