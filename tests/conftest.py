"""Settings of all tests."""

import os

import pytest
from hypothesis import settings

# Sums of several threads differ in their last bits, and tests compare results to the bit. A forked
# process cannot use threads that were started before, and `make test` runs two processes.
os.environ["OMP_NUM_THREADS"] = "1"

# An example may take as long as it does: machines stall, and a first one pays for imports.
settings.register_profile("blocklora", deadline=None)
settings.load_profile("blocklora")

# The longest ones begin first, so that no process is left with one of them at the end.
FIRST = ("tests/workflow/test_miniature_tree.py", "tests/publish/test_paper_study.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
