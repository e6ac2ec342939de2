import pytest

from blocklora import provenance

TRAIN = '''
"""A module."""
from tool.client import rate
from tool.data import pixels
import tool.study.model
from tool.errors import Fault

RATE = 1.5  # why

def step(x):
    """Do it."""
    return pixels.scale(x) * RATE
'''
PIXELS = '"""Pixels."""\ndef scale(x):\n    return x\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose digest starts from training.py; returns a function to its digest."""
    (tmp_path / "data").mkdir()
    (tmp_path / "study").mkdir()
    files = {
        "training.py": TRAIN.replace("tool", "blocklora"),
        "client.py": "def rate():\n    return 1\n",
        "data/pixels.py": PIXELS,
        "data/unused.py": "",
        "study/model.py": "A = 1\n",
        "errors.py": "B = 1\n",
        "table.csv": "1,2\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    deciding = ("blocklora.training", "blocklora.client", "blocklora.data")
    monkeypatch.setattr(provenance, "DECIDING", deciding)

    def digest(name=None, old="", new=""):
        if name:
            text = (tmp_path / name).read_text()
            assert old in text
            (tmp_path / name).write_text(text.replace(old, new) if old else text + new)
        clear_caches()
        return provenance.code_digest("blocklora.training", data=("*.csv",))

    yield digest
    clear_caches()


def clear_caches():
    for function in (provenance.code_digest, provenance._modules, provenance._tree,
                     provenance._imports, provenance._fingerprint):  # fmt: skip
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training.py", "# why", "# because"),
        ("training.py", '"""Do it."""', '"""Do it well."""'),
        ("training.py", '"""A module."""', ""),
        (
            "training.py",
            "return pixels.scale(x) * RATE",
            "return (\n        pixels.scale(x) * RATE)",
        ),
        ("data/unused.py", "", "C = 1\n"),
        ("study/model.py", "A = 1", "A = 2"),
        ("errors.py", "B = 1", "B = 2"),
    ],
)
def test_changes_that_decide_no_number_leave_the_digest(package, name, old, new):
    assert package() == package(name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training.py", "1.5", "1.6"),
        ("training.py", "* RATE", "+ RATE"),
        ("training.py", "def step(x)", "def step(y)"),
        ("data/pixels.py", "return x", "return -x"),
        ("client.py", "return 1", "return 2"),
        ("data/pixels.py", "", "D = None\n"),
        ("table.csv", "1", "3"),
    ],
)
def test_a_change_of_code_or_data_changes_the_digest(package, name, old, new):
    assert package() != package(name, old, new)


def test_an_entry_that_is_not_in_the_package_is_an_error():
    with pytest.raises(LookupError, match=r"blocklora\.nowhere is an entry"):
        provenance.code_digest("blocklora.nowhere")


def test_versions_are_those_installed():
    import numpy

    assert provenance.package_versions()["numpy"] == numpy.__version__
