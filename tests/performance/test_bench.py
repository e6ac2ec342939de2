"""The benchmark measures what it says it does, on a small model."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.engine.fast import Chunks
from blocklora.engine.plan import Plan
from blocklora.errors import UserError
from blocklora.performance.bench import document, reference_seconds
from blocklora.performance.machine import Machine
from blocklora.performance.measure import entry, figures, settings
from blocklora.performance.report import page
from blocklora.performance.trial import Device, Training
from blocklora.performance.worker import OutOfMemory, Worker
from tests.tiny import SHAPE, tiny_backbone

ROOT = Path(__file__).parents[2]
# What a bare image has: PyTorch, NumPy, open_clip_torch and what that needs.
BARE = {
    *("torch", "torchvision", "torchgen", "functorch", "triton", "numpy", "open_clip", "timm"),
    *("PIL", "ftfy", "wcwidth", "regex", "huggingface_hub", "safetensors", "tqdm", "yaml"),
    *("mpmath", "sympy", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "packaging"),
    *("typing_extensions", "setuptools", "pkg_resources", "_distutils_hack"),
    *("pynvml", "tabulate"),  # PyTorch imports pynvml if it is installed
}
# Of huggingface_hub, which uses whichever of them its version wants.
HUB = {"requests", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio", "idna", "certifi"}
HUB |= {"truststore", "urllib3", "charset_normalizer", "sniffio", "hf_xet", "shellingham", "click"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the JSON, the page and what was printed for a small setting."""
    folder = tmp_path_factory.mktemp("bench")
    save_backbone(folder / "tiny.safetensors", SHAPE, tiny_backbone().weights, "random")
    command = [
        sys.executable, "-m", "blocklora", "bench", "--model", folder / "tiny.safetensors",
        "--classes", "4", "--batch-sizes", "1", "1", "--towers", "both", "both", "--rounds", "2",
        "--threads", "1", "--output", folder / "bench.json",
        "--page", folder / "bench.md",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "bench.json").read_text()), (folder / "bench.md").read_text(), done


def test_both_engines_do_the_same_work(found):
    (entry,) = found[0]["settings"]
    fast, reference = entry["fast"], entry["reference"]
    assert fast["first_loss"] == pytest.approx(reference["first_loss"], rel=1e-4)
    assert len(fast["rounds_seconds"]) == len(reference["rounds_seconds"]) == 2
    assert entry["speedup"] == reference["step_seconds"] / fast["step_seconds"]
    assert entry["flops_formula"] == fast["flops_counted"]
    # Padded prompts and a dense update cost more.
    assert reference["flops_counted"] > fast["flops_counted"]
    assert fast["images_per_second"] == 1 / fast["step_seconds"]


def test_parts_make_up_the_step(found):
    for measured in found[0]["settings"]:
        parts = measured["parts_seconds"]
        assert set(parts) == {
            *("vision tower", "text tower", "adapter", "optimizer", "augmentation"),
        }
        total = sum(parts.values()) - parts["augmentation"]
        assert total == pytest.approx(measured["fast"]["step_seconds"])
        assert parts["optimizer"] > 0
        assert parts["augmentation"] > 0


def test_the_page_is_printed_and_written(found):
    content, written, done = found
    assert done.stdout == written
    assert content["device_name"] in written
    assert torch.__version__ in written
    assert "4 classes, batch 1, vision and text, fp32" in written
    assert "setting 1 of 1" in done.stderr


FACTS = {"device": "cuda", "device_name": "card", "threads": 1, "rounds": 3, "versions": {}}


def measurement(classes, batch_size=32, reference=None, ran_out=False, parts=None):
    """Return the entry of a setting; `reference` is the median of its rounds."""
    (setting,) = settings(SHAPE, [classes], [batch_size], ["both"], ["fp32"])
    rounds = {"fast": (0.1, 0.3, 0.2)} | ({"reference": (reference,)} if reference else {})
    engines = {n: figures(setting, times, 10**9, 10**12, 1.0) for n, times in rounds.items()}
    plan = Plan(Chunks(), 10**9)
    return entry(setting, plan, engines, ran_out, 1e13, parts or {}, (2.0, 0.001))


def test_a_run_on_imagenet_is_projected_from_steps_and_tests():
    found = measurement(1000)
    minutes = (8000 * 0.2 + 2 + 50_000 * 0.001) / 60
    assert found["imagenet_minutes"] == pytest.approx(minutes)
    assert measurement(999)["imagenet_minutes"] is None
    assert measurement(1000, batch_size=8)["imagenet_minutes"] is None
    content = document([found], FACTS)
    assert "take 27.5 minutes" in page(content)
    (only,) = content["settings"]
    assert only["fast_share_of_product_rate"] == pytest.approx(only["flops_formula"] / 1e13 / 0.2)


def test_a_reference_that_ran_out_of_memory_is_said_to_have():
    known = [measurement(50, reference=5.0), measurement(100, reference=8.0)]
    lost = measurement(1000, ran_out=True)
    assert reference_seconds(lost, [*known, lost]) == pytest.approx(8 + 3 / 50 * 900)
    assert reference_seconds(lost, [known[0], lost]) is None
    text = page(document([*known, lost], FACTS))
    (line,) = (line for line in text.splitlines() if "1000 classes" in line)
    assert "~62" in line
    assert "out of memory" in line


def test_settings_may_have_different_parts():
    both = measurement(50, parts={"vision tower": 0.125, "launch gaps": 0.0625})
    text = page(document([both, measurement(100, parts={"launch gaps": 0.25})], FACTS))
    parts = [[cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines()[-2:]]
    assert parts == [["0.125", "0.0625"], ["", "0.25"]]


def test_settings_have_the_names_of_imagenet():
    (setting,) = settings(replace(SHAPE, context_length=77), [1000], [2], ["text"], ["bf16"])
    assert sum(map(len, setting.prompts)) == 9165
    assert max(map(len, setting.prompts)) == 18
    assert setting.adapter.towers == ("text",)


def test_steps_of_a_trial_train():
    (setting,) = settings(SHAPE, [4], [4], ["both"], ["fp32"])
    trial = Training(Machine("cpu"), setting, "fast", Chunks())
    first = trial.step()
    trial.optimizer = torch.optim.AdamW(trial.adapter.parameters(), 1e-2)
    assert trial.step_seconds(20) > 0
    assert trial.step() < first


def test_the_rate_of_products_is_plausible():
    """Within what this processor can do: between a thousandth and ten times of a timed product."""
    device = Device(Machine("cpu", 1), "fp32", 32, 2)
    assert 1e8 < device.product_rate() < 1e13
    assert device.augmentation_seconds() > 0


class Subject:
    """What the workers below hold."""

    def add(self, x, y):
        return x + y

    def run_out(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def refuse(self):
        raise UserError("not here")

    def die(self, number):
        os.kill(os.getpid(), number)


@pytest.fixture
def worker():
    worker = Worker(Subject)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (("run_out",), OutOfMemory, "memory ran out; try --memory"),
        (("die", signal.SIGKILL), OutOfMemory, "memory ran out; try --memory"),
        (("refuse",), UserError, "not here"),
        (("die", signal.SIGABRT), UserError, "a measuring process has ended"),
    ],
    ids=["out of memory", "killed by the system", "refused", "crashed"],
)
def test_errors_of_a_worker_reach_the_parent(worker, request_, error, message):
    assert worker.ask("add", 1, 2) == 3
    with pytest.raises(error, match=message):
        worker.ask(*request_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "0"], "Invalid value for '--classes': "),
        (["--batch-sizes", "0"], "Invalid value for '--batch-sizes': "),
        (["--rounds", "0"], "Invalid value for '--rounds': "),
        (["--precisions", "fp16"], "precision fp16 needs a GPU"),
        (["--device", "cuda"], "PyTorch sees no CUDA GPU here"),
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


BENCH_THEN_PLAN = """
import sys
from blocklora.performance.bench import bench
from blocklora.performance.machine import Machine
from blocklora.performance.measure import settings
from blocklora.performance.report import page
from blocklora.performance.trial import Device, Training
from blocklora.performance.worker import Worker
from blocklora.engine.fast import Chunks
from tests.tiny import SHAPE

def imported():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

(setting,) = settings(SHAPE, [2], [2], ["both"], ["fp32"])
Training(Machine("cpu", 1), setting, "reference", Chunks()).step()
print(*imported())
from blocklora.cli import main
assert main(["plan", "--gpu-memory", "8GB", *sys.argv[1:]]) == 0
print(*imported())
"""


def test_bench_runs_on_a_bare_image_and_plan_imports_little_more(tmp_path):
    """The benchmark needs PyTorch, NumPy, open_clip_torch with what that needs, and tabulate."""
    study = yaml.safe_load((ROOT / "studies/mini.yaml").read_text())
    study |= {"name": "small", "datasets": ["one"], "shots": [1]}
    study["own_datasets"] = {"one": {"images": str(tmp_path)}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    save_backbone(
        tmp_path / "backbones/mini-clip.safetensors", SHAPE, tiny_backbone().weights, "random"
    )
    write_manifest(tmp_path / "data/one/manifest.csv", [LabelledImage("a.png", 0, "cat", "train")])
    options = ["--study", "small.yaml", "--results", "."]
    done = subprocess.run(
        [sys.executable, "-c", BENCH_THEN_PLAN, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    bench, plan = set(lines[0].split()), set(lines[-1].split())
    others = {"blocklora", "blocklora_open_clip_tokenizer", "tests", "cython_runtime"}
    others |= {"sitecustomize", "usercustomize"}  # some installations of Python start with these
    assert {name for name in bench if not name.startswith("_")} <= BARE | HUB | others
    assert not plan & {"snakemake", "pandas", "matplotlib", "scipy", "pooch", "sklearn"}
