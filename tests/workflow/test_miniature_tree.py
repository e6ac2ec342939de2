"""The paper's study on a miniature tree: from archives behind HTTP to tables, figures and claims.

All eleven datasets are there, each with a few images in archives of the real layout. The backbone
is very small and as good as random, but bears the name of the paper's, so that the gate knows what
its accuracy should be.
"""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from blocklora.data.registry import VARIABLE
from blocklora.files import read_json
from blocklora.study.study import load_study
from blocklora.yamlfiles import read_yaml
from tests.data import small_imagenet
from tests.data.dataset_archives import CLASSES, LAYOUTS, PER_CLASS, write_registry
from tests.data.http_server import Server
from tests.workflow.fork_server import served

ROOT = Path(__file__).parents[2]
BACKBONE = "ViT-B-16-quickgelu"
STUDY = {
    "name": "small",
    "backbones": {BACKBONE: {"source": "miniature"}},
    "shots": [2],
    "seeds": [1],
    "miniature": {
        "seed": 1, "image_size": 32, "patch_size": 16, "embed_dim": 16, "context_length": 77,
        "vision": {"width": 32, "layers": 1, "heads": 2},
        "text": {"width": 32, "layers": 1, "heads": 2},
        "steps": 1, "batch_size": 16, "learning_rate": 1e-3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def archives():
    """A server of archives."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def registry(archives, tmp_path_factory):
    """The definitions of the eleven small datasets, whose archives are on the server."""

    def serve(name, content):
        archives.add(name, content)
        return archives.url(name)

    folder = tmp_path_factory.mktemp("registry")
    small_imagenet.write_registry(folder)
    for dataset in LAYOUTS:
        write_registry(folder, dataset, serve)
    return folder


@pytest.fixture(scope="module")
def program(registry, tmp_path_factory):
    """The program `blocklora`, at work in forks of one process."""
    with served(tmp_path_factory.mktemp("s") / "s", **{VARIABLE: str(registry)}) as program:
        yield program


@pytest.fixture(scope="module")
def snakemake(prepare, program, registry, tmp_path_factory):
    """Snakemake in a folder with the study and with ImageNet's archives, which nobody serves."""
    folder = tmp_path_factory.mktemp("paper") / "workflow"
    snakemake = prepare(folder, program, **{VARIABLE: str(registry)})
    study = read_yaml(ROOT / "studies/paper.yaml") | STUDY
    study["recipe"]["iterations_per_shot"] = 3
    (folder / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    snakemake.configure(study="small.yaml")
    small_imagenet.write_tars(folder / "data/archives")
    return snakemake


def test_the_papers_study_goes_from_archives_to_claims(snakemake, archives):
    study = load_study(ROOT / "studies/paper.yaml")
    results = snakemake.folder / "results/small"

    # First up to the gate, which stops a backbone of unknown accuracy before anything is trained.
    output = snakemake("--keep-going")
    assert snakemake.status == 1, output
    stopped = [name for name in study.datasets if not gate_file(results, name).exists()]
    assert "eurosat" in stopped  # 42.05 % of six images is no number of images
    for dataset in stopped:
        log = (results / f"logs/gate/{BACKBONE}/{dataset}.log").read_text()
        assert f"zero-shot accuracy of {dataset} with {BACKBONE} is" in log
        assert "Likely causes: another test split" in log
        assert not (results / f"runs/{BACKBONE}/{dataset}/clip_lora").exists()

    # Then to the end.
    output = snakemake("--config", "gate=warn")
    assert snakemake.status == 0, output
    runs = pd.read_csv(results / "runs.csv")
    columns = ["dataset", "method", "shots"]
    assert [tuple(row) for row in runs[columns].itertuples(index=False)] == [
        (dataset, method, shots)
        for dataset in study.datasets
        for method, shots in (("zero_shot", 0), ("clip_lora", 2), ("block_lora", 2))
    ]
    assert set(runs.classes) == {CLASSES}
    assert set(runs.test_images) == {CLASSES * PER_CLASS["test"]}
    assert list(runs.train_images) == list(runs.shots * CLASSES)
    for dataset in study.datasets:
        assert read_json(results / f"data/{dataset}/source.json")["origin"] == "downloaded"
        assert read_json(results / f"data/{dataset}/verification.json")["passed"]
        assert (read_json(gate_file(results, dataset))["status"] == "differs") == (
            dataset in stopped
        )
    for alternatives in LAYOUTS.values():
        for archive in alternatives[0]:
            assert archives.routes[f"/{archive}"].requests == [None], archive

    table = (results / "tables/fewshot-2shot.md").read_text()
    assert all(name in table for name in ("ImageNet", "SUN397", "UCF101", "Block-LoRA")), table
    assert len(list((results / "figures" / BACKBONE).glob("*.pdf"))) == 6
    assert sum(read_json(results / "claims.json")["counts"].values()) > 5

    assert snakemake.jobs() == {}


def gate_file(results, dataset):
    return results / f"gates/{BACKBONE}/{dataset}.json"
