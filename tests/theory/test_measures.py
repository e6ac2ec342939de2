"""Measures are described completely, and describing them costs nothing."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

from blocklora.theory.measures import MEASURES, columns_of

ROOT = Path(__file__).parents[2]


def test_measures_are_described_completely():
    words = {"runs", "adapters", "weights", "manifests", "shots_pixels"}
    words |= {"shapes", "class_counts", "prompts"}
    tables = [table for entry in MEASURES.values() for table in entry.tables]
    assert len(tables) == len(set(tables))
    for name, entry in MEASURES.items():
        module, function = entry.compute.split(":")
        assert callable(getattr(import_module(module), function))
        assert name in entry.tables
        assert set(entry.needs) <= words | set(tables)
        assert columns_of(name) == entry.tables[name]


def test_describing_measures_imports_nothing_heavy():
    script = "import sys, blocklora.theory.measures as m; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "numpy", "pandas", "scipy"} & set(done.stdout.split()), done.stderr
