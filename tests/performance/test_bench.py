"""The benchmark measures what it says it does, in pieces, on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.errors import UserError
from blocklora.performance import bench as benchmark
from blocklora.performance.bench import bench
from blocklora.performance.entries import describe
from blocklora.performance.measure import settings
from blocklora.performance.report import page
from tests.performance.stand_ins import FACTS, measurement
from tests.tiny import SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]


# What a bare image has: PyTorch, NumPy, open_clip_torch and what that needs.
BARE = {
    *("torch", "torchvision", "torchgen", "functorch", "triton", "numpy", "open_clip", "timm"),
    *("PIL", "ftfy", "wcwidth", "regex", "huggingface_hub", "safetensors", "tqdm", "yaml"),
    *("mpmath", "sympy", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "packaging"),
    *("typing_extensions", "setuptools", "pkg_resources", "_distutils_hack"),
    "pynvml",  # PyTorch imports it if it is installed
}


# Of huggingface_hub, which uses whichever of them its version wants.
HUB = {"requests", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "idna", "certifi"}


HUB |= {"truststore", "urllib3", "charset_normalizer", "sniffio", "hf_xet", "shellingham", "click"}


# What this package needs besides, but not to measure. A bare image cannot import these.
MISSING = ("pydantic", "pydantic_core", "snakemake", "tabulate", "pandas", "typer", "rich")


MISSING += ("scipy", "sklearn", "matplotlib", "pooch")


BENCH_THEN_PLAN = """
import logging, sys
from blocklora.performance import bench
from tests.tiny import SHAPE

def imported():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

logging.basicConfig(level="INFO", format="%(message)s")
bench.published_config = lambda name: SHAPE
sizes = {"classes": [4, 4], "batch_sizes": [1, 1], "towers": ["both", "both"]}
bench.bench(**sizes, threads=1, rounds=2, output="bench.json")
print(*imported())
sys.path.remove(sys.argv[1])
from blocklora.cli import main
assert main(["plan", "--gpu-memory", "8GB", *sys.argv[2:]]) == 0
print(*imported())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Return a folder with the results for a small setting on a bare image, and the process.

    The process makes a plan of a small study afterwards, with all packages.
    """
    folder = tmp_path_factory.mktemp("bench")
    for name in MISSING:
        (folder / "missing" / name).mkdir(parents=True)
        text = "raise ImportError('a bare image does not have it')\n"
        (folder / "missing" / name / "__init__.py").write_text(text)
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study |= {"name": "small", "datasets": ["one"], "shots": [1]}
    study["own_datasets"] = {"one": {"images": str(folder)}}
    (folder / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    save_backbone(
        folder / "backbones/mini-clip.safetensors", SHAPE, tiny_backbone().weights, "random"
    )
    write_manifest(folder / "data/one/manifest.csv", [LabelledImage("a.png", 0, "cat", "train")])
    missing = str(folder / "missing")
    options = ["--study", "small.yaml", "--results", "."]
    done = subprocess.run(
        [sys.executable, "-c", BENCH_THEN_PLAN, missing, *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((missing, str(ROOT)))},
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def found(bare):
    """Return the JSON for a small setting."""
    return json.loads((bare[0] / "bench.json").read_text())


def test_bench_runs_on_a_bare_image_and_plan_imports_little_more(bare):
    """The benchmark needs PyTorch, NumPy, and open_clip_torch with what that needs."""
    lines = bare[1].stdout.splitlines()
    bench, plan = set(lines[0].split()), set(lines[-1].split())
    others = {"blocklora", "blocklora_open_clip_tokenizer", "tests", "cython_runtime"}
    others |= {"sitecustomize", "usercustomize"}  # some installations of Python start with these
    assert {name for name in bench if not name.startswith("_")} <= BARE | HUB | others
    assert not plan & {"snakemake", "pandas", "matplotlib", "scipy", "pooch", "sklearn"}


def test_both_engines_do_the_same_work(found):
    (entry,) = found["settings"]
    fast, reference = entry["fast"], entry["reference"]
    assert fast["first_loss"] == pytest.approx(reference["first_loss"], rel=1e-4)
    assert len(fast["rounds_seconds"]) == len(reference["rounds_seconds"]) == 2
    assert entry["speedup"] == reference["step_seconds"] / fast["step_seconds"]
    assert entry["flops_formula"] == entry["flops_counted"]
    # Padded prompts and a dense update cost more.
    assert entry["reference_flops_counted"] > entry["flops_counted"]
    assert fast["images_per_second"] == 1 / fast["step_seconds"]


def test_parts_make_up_the_step(found):
    (measured,) = found["settings"]
    parts = measured["parts_seconds"]
    assert set(parts) == {"vision tower", "text tower", "adapter", "optimizer", "augmentation"}
    total = sum(parts.values()) - parts["augmentation"]
    assert total == pytest.approx(measured["fast"]["step_seconds"])
    assert parts["optimizer"] > 0
    assert parts["augmentation"] > 0


def test_each_piece_is_announced_and_summed_up_in_a_line(bare, found):
    name, results = bare[1].stderr.splitlines()[:2]
    assert name == "setting 1 of 1: 4 classes, batch 1, vision and text, fp32"
    seconds = found["settings"][0]["fast"]["step_seconds"]
    assert results.startswith(f"  fast {seconds:.3g} s per step, ")


def test_the_page_has_the_settings_the_machine_and_the_versions(found):
    text = page(found)
    assert found["device_name"] in text
    assert torch.__version__ in text
    assert text.count("4 classes, batch 1, vision and text, fp32") == 3
    assert "without graph" not in text  # a column that would be empty


def test_the_settings_that_tell_most_are_the_first_ones_on_a_gpu():
    usual = benchmark.DEFAULTS["cuda"]
    names = ("classes", "batch_sizes", "towers", "precisions")
    first = [describe(one) for one in settings(SHAPE, *(usual[name] for name in names))]
    assert [
        (one["classes"], one["batch_size"], one["towers"], one["precision"]) for one in first[:2]
    ] == [(1000, 32, ["vision", "text"], "fp16"), (10, 32, ["vision", "text"], "fp16")]
    assert {one["precision"] for one in first[:9]} == {"fp16", "bf16", "fp32"}
    assert {tuple(one["towers"]) for one in first[:9]} == {("vision", "text")}


class Cut(Exception):
    """Stands for whatever ends the benchmark."""


@pytest.fixture
def pieces(monkeypatch, tmp_path):
    """Let the benchmark measure nothing, and return a function that runs it.

    The function returns the numbers of classes in the order in which they were measured. With
    `lasting`, the benchmark is cut off after so many pieces.
    """
    monkeypatch.setattr(benchmark, "published_config", lambda name: SHAPE)
    output, text = tmp_path / "bench.json", tmp_path / "bench.md"

    def run(classes, lasting=9, **options):
        done = []

        def stand_in(setting, *_):
            if len(done) == lasting:
                raise Cut
            if done:  # the results of the pieces before are in the files
                written = [entry["classes"] for entry in json.loads(output.read_text())["settings"]]
                assert written[-1] == done[-1]
                assert f"| {done[-1]} classes, " in text.read_text()
            done.append(len(setting.prompts))
            return measurement(len(setting.prompts), setting.batch_size, setting.precision)

        monkeypatch.setattr(benchmark, "measure", stand_in)
        options = {"threads": 1, "rounds": 3} | options
        try:
            bench(classes=classes, output=output, page=text, **options)
        except Cut:
            assert len(done) == lasting
        return done

    run.output = output
    return run


def test_a_benchmark_that_was_cut_off_continues(pieces, caplog):
    caplog.set_level("INFO")
    assert pieces([7, 3, 5], lasting=1) == [7]
    assert pieces([7, 3, 5]) == [3, 5]
    assert "setting 1 of 3: 7 classes, batch 4, vision and text, fp32: measured before" in (
        caplog.messages
    )
    assert pieces([7, 3, 5]) == []
    found = json.loads(pieces.output.read_text())
    assert [entry["classes"] for entry in found["settings"]] == [7, 3, 5]
    assert pieces([3], batch_sizes=[8]) == [3]
    assert len(json.loads(pieces.output.read_text())["settings"]) == 4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rounds": 4}, "rounds"),
        ({"memory": 10**9}, "usable_bytes"),
        ({"device_name": "another"}, "device_name"),
        ({"versions": {"PyTorch": "0"}}, "versions"),
        ({"code": "0"}, "code"),
        ({"shape": "0"}, "shape"),
    ],
)
def test_results_of_another_benchmark_are_replaced(pieces, caplog, change, name):
    """The change is in the call, if it is an option, and else in the file."""
    caplog.set_level("INFO")
    pieces([7])
    options = {key: value for key, value in change.items() if key in ("rounds", "memory")}
    found = json.loads(pieces.output.read_text()) | ({} if options else change)
    pieces.output.write_text(json.dumps(found))
    assert pieces([5], **options) == [5]
    found = json.loads(pieces.output.read_text())
    assert [entry["classes"] for entry in found["settings"]] == [5]
    assert f"{pieces.output}: measured with other values of {name}, so it is replaced" in (
        caplog.messages
    )


def test_a_precision_that_a_card_lacks_is_left_out_unless_it_is_asked_for(pieces, monkeypatch):
    def require(device, precision):
        if precision == "bf16":
            raise UserError("card does not compute in bf16")

    monkeypatch.setattr("blocklora.performance.machine.require_device", require)
    monkeypatch.setattr(benchmark, "facts", lambda *_: FACTS)
    pieces([7], device="cuda", towers=["both"])
    found = json.loads(pieces.output.read_text())
    assert [entry["precision"] for entry in found["settings"]] == ["fp16", "fp32"]
    with pytest.raises(UserError, match="does not compute in bf16"):
        pieces([7], device="cuda", precisions=["fp16", "bf16"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "0"], "Invalid value for '--classes': "),
        (["--batch-sizes", "0"], "Invalid value for '--batch-sizes': "),
        (["--rounds", "0"], "Invalid value for '--rounds': "),
        (["--precisions", "fp16"], "precision fp16 needs a GPU"),
        (["--device", "cuda"], "device cuda was asked for, but PyTorch"),
        (["--model", "ViT-Z"], "ViT-Z"),
        (
            ["--model", "tiny.safetensors", "--memory", "0.1MB", "--towers", "vision"],
            "MiB even in small chunks",
        ),
    ],
)
def test_impossible_measurements_end_with_one_line(options, message, capsys, monkeypatch, tmp_path):
    save_backbone(tmp_path / "tiny.safetensors", SHAPE, tiny_backbone().weights, "random")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *options]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("blocklora bench: error: ")
    assert message in error
