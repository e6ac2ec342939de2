"""The benchmark measures what it says it does, in pieces, on a small model."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from blocklora.backbones.weights import save_backbone
from blocklora.cli import main
from blocklora.data.manifest import LabelledImage, write_manifest
from blocklora.engine.fast import Chunks
from blocklora.engine.plan import Plan
from blocklora.errors import UserError
from blocklora.performance import bench as benchmark
from blocklora.performance import measure as measuring
from blocklora.performance import protocol, trial
from blocklora.performance.bench import bench, document, reference_seconds
from blocklora.performance.entries import describe, entry
from blocklora.performance.machine import Machine
from blocklora.performance.measure import Trial, measure, settings, take_turns
from blocklora.performance.report import page
from blocklora.performance.traffic import Traffic
from blocklora.performance.trial import Device, Training
from blocklora.performance.worker import OutOfMemory, Worker, _serve
from blocklora.study.study import load_study
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


def test_a_run_on_imagenet_is_projected_from_steps_and_tests():
    minutes = (8000 * 0.2 + 2 + 50_000 * 0.001) / 60
    content = document([measurement(1000), measurement(999), measurement(1000, 8)], FACTS)
    projected = [one["imagenet_minutes"] for one in content["settings"]]
    assert projected == [pytest.approx(minutes), None, None]
    assert "take 27.5 minutes" in page(content)
    only = content["settings"][0]
    assert only["fast_share_of_product_rate"] == pytest.approx(only["flops_formula"] / 1e13 / 0.2)


def test_the_protocol_is_that_of_the_study_of_the_paper():
    study = load_study(ROOT / "studies/paper.yaml")
    methods = [study.methods[name] for name in study.adapter_methods]
    assert len(methods) == protocol.METHODS
    assert {method.recipe for method in methods} == {protocol.RECIPE}
    assert protocol.ADAPTER in [method.adapter for method in methods]
    assert (tuple(study.shots), len(study.seeds)) == (protocol.SHOTS, protocol.SEEDS)


def test_the_whole_paper_is_projected_from_its_shortest_and_its_longest_steps():
    study = load_study(ROOT / "studies/paper.yaml")
    runs = len(study.datasets) * len(study.seeds) * len(study.adapter_methods)
    steps = runs * sum(study.shots) * 500
    few, many = measurement(10, fast=answers(0.25)), measurement(1000, fast=answers(0.25))
    paper = document([few, many], FACTS)["paper"]
    assert paper == {"fp32": {"steps": steps, "hours": pytest.approx(steps * 0.25 / 3600)}}
    # A step that takes as long as ImageNet's has its number of tokens, and others lie in between.
    slower = measurement(1000, fast=answers(0.5))
    found = document([few, slower], FACTS)
    assert steps * 0.25 / 3600 < found["paper"]["fp32"]["hours"] < steps * 0.5 / 3600
    imagenet = steps / len(study.datasets) * 0.5 / 3600
    assert found["paper"]["fp32"]["hours"] > imagenet
    assert f"the {steps} training steps of the paper" in page(found)
    for others in ([few], [few, measurement(1000, precision="bf16")], [few, measurement(1000, 8)]):
        assert document(others, FACTS)["paper"] == {}


def test_a_reference_that_ran_out_of_memory_is_said_to_have():
    known = [measurement(n, reference=answers(s)) for n, s in ((50, 5.0), (100, 8.0))]
    lost = measurement(1000, reference=None)
    assert reference_seconds(lost, [*known, lost]) == pytest.approx(8 + 3 / 50 * 900)
    assert reference_seconds(lost, [known[0], lost]) is None
    text = page(document([*known, lost], FACTS))
    line = next(line for line in text.splitlines() if "1000 classes" in line)
    assert "~62" in line
    assert "out of memory" in line


@pytest.mark.parametrize("trial", ["fast", "unrecorded", "towers", "vision", "device", "reference"])
def test_a_trial_that_ran_out_of_memory_leaves_a_page_of_the_others(trial):
    others = {name: answers(0.5) for name in ("unrecorded", "towers", "vision", "reference")}
    found = document([measurement(50, **(others | {trial: None}))], FACTS)
    (only,) = found["settings"]
    assert only["ran_out_of_memory"] == [trial]
    assert json.loads(json.dumps(found)) == found
    text = page(found)
    assert ("out of memory" in text) == (trial in ("fast", "unrecorded", "reference"))
    assert ("out of memory" in benchmark.summary(only)) == ("out of memory" in text)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_does_not_spoil_the_file(loss):
    found = document([measurement(50, fast=answers(0.5, first=loss))], FACTS)
    assert found["settings"][0]["fast"]["first_loss"] is None
    json.dumps(found, allow_nan=False)


def test_settings_may_have_different_parts():
    parts = {"towers": answers(0.15), "vision": answers(0.125)}
    profiled = answers(0.25, kernels=(2000.0, 0.1875), test_seconds=(2.0, 0.001))
    both = measurement(50, fast=profiled, **parts)
    text = page(document([both, measurement(100, fast=profiled)], FACTS))
    first = next(line for line in text.splitlines() if "launch gaps" in line)
    place = [cell.strip() for cell in first.split("|")].index("launch gaps")
    rows = text.splitlines()[text.splitlines().index(first) + 2 :][:2]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [row[place] for row in cells] == ["0.0625", "0.0625"]
    assert [row[2] for row in cells] == ["0.125", ""]
    assert "Launch gaps are" in text


def test_each_trial_loses_the_time_of_its_own_optimizer():
    """Those of the reductions have few parameters, which take less time to update."""
    found = {"fast": answers(10.0, update=4.0), "towers": answers(5.0, update=0.5)}
    found["vision"] = answers(3.0, update=0.25)
    parts = measurement(50, **found)["parts_seconds"]
    assert parts == {
        "vision tower": 2.75,
        "text tower": 1.75,
        "adapter": 1.5,
        "optimizer": 4.0,
        "augmentation": 0.5,
    }


def test_settings_have_the_names_of_imagenet():
    (setting,) = settings(replace(SHAPE, context_length=77), [1000], [2], ["text"], ["bf16"])
    assert sum(map(len, setting.prompts)) == 9165
    assert max(map(len, setting.prompts)) == 18
    assert setting.adapter.towers == ("text",)


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


class Gpu:
    """Stands for the workers on a GPU, which take their turns in no time.

    Attributes:
        alive: The names of those that are alive.
        most: The largest number of them so far.
        now: Seconds by its clock.
        seconds: The time of a turn by name; other turns take none.
        full: Names and methods for which there is no memory.
    """

    def __init__(self):
        self.alive, self.most, self.now, self.seconds, self.full = [], 0, 0.0, {}, ()

    def worker(self, build, machine, *arguments):
        return Here(self, "device" if build is Device else self.name_of(*arguments))

    @staticmethod
    def name_of(setting, engine, chunks, recorded=True):
        return engine if recorded else "unrecorded"


class Here:
    """Stands for a worker on the stand-in of a GPU."""

    def __init__(self, gpu, name):
        self.gpu, self.name = gpu, name
        gpu.alive.append(name)
        gpu.most = max(gpu.most, len(gpu.alive))

    def ask(self, method):
        if (self.name, method) in self.gpu.full:
            raise OutOfMemory("memory ran out")
        if method == "turn":
            self.gpu.now += self.gpu.seconds.get(self.name, 0.0)
        found = answers(0.5, test_seconds=(1.0, 1.0), kernels=(2000.0, 0.25), recorded=True)
        return (found | {"turn": 0.5, "augmentation_seconds": 0.1})[method]

    def close(self):
        self.gpu.alive.remove(self.name)


@pytest.fixture
def gpu(monkeypatch):
    """Let stand-ins measure, and spare the time of planning and counting."""
    gpu = Gpu()
    monkeypatch.setattr(measuring, "Worker", gpu.worker)
    monkeypatch.setattr(measuring, "perf_counter", lambda: gpu.now)
    monkeypatch.setattr(measuring, "planned_peak_bytes", lambda *_: 10**9)
    monkeypatch.setattr(measuring, "count_step", lambda *_: (10**12, Traffic()))
    return gpu


def measured_on_a_gpu():
    """Return the entry of a small setting."""
    (setting,) = settings(SHAPE, [4], [2], ["both"], ["fp16"])
    return measure(setting, Machine("cuda"), 5, None, True)


def test_few_processes_share_a_gpu(gpu):
    found = measured_on_a_gpu()
    assert (gpu.most, gpu.alive) == (2, [])
    for name in ("fast", "unrecorded", "reference"):
        assert found[name]["rounds_seconds"] == [0.5] * 5
        assert found[name]["reserved_memory_bytes"] == 2 * 10**9
    assert (found["kernels"], found["busy_seconds"], found["recorded"]) == (2000.0, 0.25, True)


def test_rounds_end_when_the_time_of_a_piece_is_used(gpu):
    """A slow reference engine takes the time of the other rounds, but each has its first one."""
    gpu.seconds = {"reference": 25.0}
    found = measured_on_a_gpu()
    assert len(found["fast"]["rounds_seconds"]) == len(found["reference"]["rounds_seconds"]) == 3
    assert len(found["unrecorded"]["rounds_seconds"]) == 1
    assert found["parts_seconds"]["optimizer"] == 0
    assert gpu.now < 120


@pytest.mark.parametrize("method", ["start", "turn", "test_seconds"])
def test_a_lack_of_memory_is_noted_and_ends_nothing_else(gpu, method):
    gpu.full = (("fast", method),)
    found = measured_on_a_gpu()
    # The reductions are fast engines, too.
    lost = {"start": 3, "turn": 3, "test_seconds": 1}[method]
    assert found["ran_out_of_memory"] == ["fast", "towers", "vision"][:lost]
    assert found["fast"] is None
    assert found["reference"]["step_seconds"] == 0.5
    assert found["product_rate_flops"] == 0.5


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


def test_steps_of_a_trial_train():
    (setting,) = settings(SHAPE, [4], [4], ["both"], ["fp32"])
    training = Training(Machine("cpu"), setting, "fast", Chunks())
    first = training.step()
    training.optimizer = torch.optim.AdamW(training.adapter.parameters(), 1e-2)
    assert training.step_seconds(20) > 0
    assert training.step() < first


@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 20), (0.3, 6), (5.0, 1)])
def test_a_turn_has_fewer_steps_if_they_take_long(seconds, steps, monkeypatch):
    (setting,) = settings(SHAPE, [2], [1], ["vision"], ["fp32"])
    training = Training(Machine("cpu", 1), setting, "fast", Chunks())
    monkeypatch.setitem(trial.STEPS_PER_TURN, "cpu", 20)
    monkeypatch.setattr(training, "step_seconds", lambda steps: seconds)
    training.start()
    assert training.steps == steps


def test_the_rate_of_products_is_plausible():
    """Within what this processor can do: between a thousandth and ten times of a timed product."""
    device = Device(Machine("cpu", 1), "fp32", 32, 2)
    assert 1e8 < device.turn() < 1e13
    assert device.augmentation_seconds() > 0


def test_the_time_of_augmentation_is_a_median_of_warm_calls(monkeypatch):
    device, calls = Device(Machine("cpu", 1), "fp32", 32, 1), []
    times = [3.0, 1.0, 100.0, 2.0, 4.0]
    monkeypatch.setattr(trial, "cut", lambda *_: calls.append("cut"))

    def seconds(self, work):
        assert calls  # one that is not measured came first
        work()
        return times[len(calls) - 2]

    monkeypatch.setattr(Machine, "seconds", seconds)
    assert device.augmentation_seconds() == median(times)


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


class Full(Subject):
    """Has no memory for a turn."""

    turn = Subject.run_out


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


class Broken:
    """An end of a pipe whose other end is lost, which shows in `send` or in `recv`."""

    def __init__(self, error, method):
        self.error, self.method, self.received = error, method, 0

    def send(self, answer):
        if self.method == "send":
            raise self.error

    def recv(self):
        self.received += 1
        if self.method == "recv" or self.received > 1:
            raise self.error
        return "add", (1, 2)

    def close(self):
        """Do nothing; the other end is lost anyway."""


LOST = (EOFError, BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


@pytest.mark.parametrize("method", ["send", "recv"])
@pytest.mark.parametrize("error", LOST)
def test_a_lost_process_is_noticed_on_either_way(worker, method, error):
    """Which of these errors comes is decided by a race."""
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._pipe.close()
    worker._pipe = Broken(error, method)
    with pytest.raises(OutOfMemory):
        worker.ask("add", 1, 2)
    if error is not EOFError or method == "recv":  # nobody sends to the end of a file
        _serve(Broken(error, method), Subject, ())


def test_processes_take_turns_and_answer_questions():
    trials = {
        name: Trial((Subject,), questions)
        for name, questions in {
            "one": ("start",),
            "full": (),
            "late": ("run_out", "start"),
            "other": ("turn",),
        }.items()
    }
    trials["full"] = Trial((Full,), ("start",))
    found = take_turns(trials, 3, float("inf"))
    assert found["one"] == {"turns": [2, 3, 4], "start": 1}
    assert (found["full"], found["late"]) == (None, None)
    assert found["other"]["turns"] == [2, 3, 4, 5]


@pytest.mark.gpu
def test_a_piece_on_a_gpu_has_every_measurement():
    shape = replace(SHAPE, context_length=77)
    (setting,) = settings(shape, [10], [4], ["both"], ["fp16"])
    found = measure(setting, Machine("cuda"), 2, None, True)
    assert found["ran_out_of_memory"] == []
    for name in ("fast", "unrecorded", "reference"):
        assert found[name]["reserved_memory_bytes"] >= found[name]["peak_memory_bytes"] > 0
        assert len(found[name]["rounds_seconds"]) == 2
    assert found["recorded"]
    assert found["fast"]["first_loss"] == pytest.approx(found["reference"]["first_loss"], rel=1e-2)
    assert found["kernels"] > 100
    assert 0 < found["busy_seconds"] <= found["unrecorded"]["step_seconds"]
    assert found["test_image_seconds"] > 0
    assert found["piece_seconds"] < 120


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
