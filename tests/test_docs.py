"""The Python of the documentation runs, and what its pages name is there."""

import re
from pathlib import Path

from blocklora.adapters.store import save_adapter
from blocklora.backbones.model import build_open_clip
from tests.tiny import LORA, SHAPE, tiny_backbone, trained_adapter

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]


def test_the_example_of_the_adapters_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "adapters.md").read_text(), re.S)
    backbone = tiny_backbone()
    monkeypatch.chdir(tmp_path)
    save_adapter("adapter.safetensors", trained_adapter(LORA, backbone), "tiny", "0" * 64)
    exec(code, {"model": build_open_clip(SHAPE, backbone.weights)})


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_of_the_project_that_pages_name_exist():
    named = [
        (page.name, path)
        for page in PAGES
        for path in re.findall(
            r"`((?:blocklora|workflow|tests|studies|docs)/[\w./-]+\.\w+)`", page.read_text()
        )
    ]
    assert named
    assert [(page, path) for page, path in named if not (DOCS.parent / path).exists()] == []
