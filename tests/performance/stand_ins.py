"""Stand-ins for the objects that the benchmark measures, and for what it finds."""

import os

import torch

from blocklora.engine.fast import Chunks
from blocklora.engine.plan import Plan
from blocklora.errors import UserError
from blocklora.performance.entries import entry
from blocklora.performance.measure import settings
from blocklora.performance.traffic import Traffic
from tests.tiny import SHAPE

FACTS = {"device": "cuda", "device_name": "card", "threads": 1, "rounds": 3, "versions": {}}


COUNTED = Traffic()


def answers(*turns, first=1.0, update=0.0, **others):
    """Return what is found of a training whose rounds take `turns`, and its optimizer `update`."""
    memory = {"peak_memory_bytes": 10**9, "reserved_memory_bytes": 2 * 10**9}
    found = {"start": first, "turns": list(turns), "peak_memory": memory}
    return found | {"optimizer_seconds": update, "counted_flops": 10**12} | others


def measurement(classes, batch_size=32, precision="fp32", **found):
    """Return the entry of a setting; `found` has the answers of further trials."""
    (setting,) = settings(SHAPE, [classes], [batch_size], ["both"], [precision])
    fast = answers(0.1, 0.3, 0.2, test_seconds=(2.0, 0.001))
    device = {"turns": [1e13], "augmentation_seconds": 0.5}
    plan = Plan(Chunks(), 10**9)
    found = {"fast": fast, "device": device} | found
    return entry(setting, plan, 10**12, COUNTED, found) | {"piece_seconds": 1.0}


class Subject:
    """What the workers below hold."""

    turns = 0

    def start(self):
        self.turns = 1
        return 1

    def turn(self):
        self.turns += 1
        return self.turns

    def add(self, x, y):
        return x + y

    def run_out(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def refuse(self):
        raise UserError("not here")

    def die(self, number):
        os.kill(os.getpid(), number)
