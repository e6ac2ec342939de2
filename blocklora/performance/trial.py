"""The measurements of the benchmark: trainings on random weights, and the bare device.

The speed does not depend on the values of the weights, so random ones are good enough, and nothing
has to be downloaded. Each object lives in a process of its own; see `worker.py`. First it is asked
to `start`, then it does a measured `turn` in each round, and at last it answers some questions.
"""

from dataclasses import replace
from statistics import median

import numpy as np
import torch

from blocklora.adapters.adapter import Adapter
from blocklora.adapters.merge import merge
from blocklora.backbones.model import Backbone, tensor_shapes
from blocklora.backbones.shape import ClipConfig
from blocklora.engine.augment import cut, draw_crops
from blocklora.engine.classifier import Classifier
from blocklora.engine.engines import load_engine
from blocklora.engine.fast import Chunks
from blocklora.engine.loop import make_optimizer, make_scaler, training_step
from blocklora.engine.memory import release_memory
from blocklora.engine.needs import Setting
from blocklora.engine.precisions import dtype_of
from blocklora.engine.products import product
from blocklora.performance.machine import Machine
from blocklora.performance.protocol import RECIPE
from blocklora.runs.device import peak_memory, reset_peak_memory
from blocklora.theory.counting import flop_counter

# By device: the largest number of steps in a turn, and the batches of a test.
STEPS_PER_TURN = {"cpu": 1, "cuda": 20}
TEST_BATCHES = {"cpu": 1, "cuda": 64}
TURN_SECONDS = 2.0  # a turn has fewer steps if they would take longer
PROFILED_STEPS = 5
UPDATES = 20  # of the optimizer
# Height, width and channels of a typical image of ImageNet.
IMAGE_SHAPE = (375, 500, 3)
# Width of the square matrices whose product measures the rate, which smaller ones would not reach.
PRODUCT_WIDTH = {"cpu": 1024, "cuda": 8192}


class Training:
    """A training whose steps are measured, with AdamW as in a run and always the same batch.

    Attributes:
        steps: Number of steps in a turn.
    """

    def __init__(
        self,
        machine: Machine,
        setting: Setting,
        engine: str,
        chunks: Chunks,
        recorded: bool = True,
    ) -> None:
        """Prepare the first step; `engine` is "fast" or "reference".

        If `recorded` is false, the fast engine records no CUDA graph on a GPU.

        Raises:
            UserError: The device is not available or cannot compute in the precision.
        """
        machine.prepare(setting.precision)
        reset_peak_memory(machine.device)
        self.machine, self.setting = machine, setting
        clip, device = setting.clip, machine.device
        self.backbone = random_backbone(clip)
        generator = torch.Generator().manual_seed(0)
        self.adapter = Adapter.initialise(setting.adapter, clip.tower_shapes, generator, device)
        self.engine = load_engine(engine)(
            self.backbone,
            self.adapter,
            setting.prompts,
            logit_scale=RECIPE.logit_scale,
            seed=0,
            device=device,
            precision=setting.precision,
            chunks=chunks,
            **({"cuda_graphs": recorded} if engine == "fast" else {}),
        )
        self.optimizer = make_optimizer(self.adapter.parameters(), RECIPE, self.engine.device)
        self.scaler = make_scaler(self.engine)
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch_size, clip.image_size, clip.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(setting.prompts), shape[:1], generator=generator)
        self.images, self.labels = images.to(device), labels.to(device)
        self.done, self.steps = 0, 1

    def start(self) -> float:
        """Do steps that are not measured, choose the steps of a turn, and return the first loss.

        The low-rank update is zero at first, so the first loss is the same with every engine.
        """
        loss = self.step()
        fitting = int(TURN_SECONDS / self.step_seconds(1))
        self.steps = max(1, min(STEPS_PER_TURN[self.machine.device], fitting))
        if self.steps > 1:
            self.turn()
        return loss

    def turn(self) -> float:
        """Return the mean seconds of the steps of a turn."""
        return self.step_seconds(self.steps)

    def step(self) -> float:
        """Do a step and return its loss."""
        return self._do_step().item()

    def step_seconds(self, steps: int) -> float:
        """Return the mean seconds of `steps` steps; nothing waits for the device between them."""
        return self.machine.seconds(self._do_step, steps)

    def _do_step(self) -> torch.Tensor:
        batch = self.images, self.labels
        loss, _ = training_step(self.engine, self.optimizer, self.scaler, *batch, self.done)
        self.done += 1
        return loss

    def counted_flops(self) -> int:
        """Do a step and return the operations that PyTorch counts in it."""
        with flop_counter() as counter:
            self.step()
        return counter.get_total_flops()

    def peak_memory(self) -> dict[str, int | None]:
        """Return the peak memory in bytes; see `blocklora.runs.device.peak_memory`."""
        return peak_memory(self.machine.device)

    def optimizer_seconds(self) -> float:
        """Return the mean seconds of an update by the optimizer and the scaler of the loss."""
        for parameter in self.adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def update() -> None:
            self.scaler.step(self.optimizer)
            self.scaler.update()

        return self.machine.seconds(update, UPDATES)

    def recorded(self) -> bool | None:
        """Return whether steps are replayed as a CUDA graph; see `Engine.recorded`."""
        return self.engine.recorded

    def kernels(self) -> tuple[float, float] | None:
        """Return how many kernels and copies a step runs on a GPU, and their seconds in all.

        The result is None without a GPU, or if the profiler may not see them.
        """
        if self.machine.device == "cpu":
            return None
        steps = min(self.steps, PROFILED_STEPS)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.step_seconds(steps)
        seconds = [
            event.time_range.elapsed_us() / 1e6
            for event in profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        return (len(seconds) / steps, sum(seconds) / steps) if seconds else None

    def test_seconds(self) -> tuple[float, float]:
        """Return the seconds for preparing a test, and for testing an image of a large test.

        The preparation merges the adapter into the weights and encodes the prompts. The engine is
        freed first, as in a run, so there can be no step afterwards.
        """
        del self.engine
        release_memory(self.machine.device)
        prepared: list[Classifier] = []

        def prepare() -> None:
            merged = replace(self.backbone, weights=merge(self.backbone.weights, self.adapter))
            options = RECIPE.logit_scale, self.machine.device, self.setting.precision
            prepared.append(Classifier(merged, self.setting.prompts, *options))

        prompts = self.machine.seconds(prepare)
        images = TEST_BATCHES[self.machine.device] * self.setting.batch_size
        pixels = np.resize(self.images.cpu().numpy(), (images, *self.images.shape[1:]))
        (classifier,) = prepared
        classifier.predict(pixels[: (len(pixels) + 1) // 2])
        return prompts, self.machine.seconds(lambda: classifier.predict(pixels)) / images


class Device:
    """The speed of the device and of the CPU, apart from training."""

    def __init__(self, machine: Machine, precision: str, image_size: int, batch_size: int) -> None:
        """Prepare a batch of images.

        Raises:
            UserError: The device is not available or cannot compute in the precision.
        """
        machine.prepare(precision)
        self.machine, self.precision, self.image_size = machine, precision, image_size
        generator = np.random.default_rng(0)
        self.images = [generator.integers(0, 256, IMAGE_SHAPE, np.uint8) for _ in range(batch_size)]

    def start(self) -> float:
        """Do a turn that is not measured."""
        return self.turn()

    def turn(self) -> float:
        """Return the operations per second of a large matrix product.

        The matrices are freed at once, so that they take no memory from trainings.
        """
        rate = self._product_rate()
        release_memory(self.machine.device)
        return rate

    def _product_rate(self) -> float:
        width, device = PRODUCT_WIDTH[self.machine.device], self.machine.device
        left, right = torch.randn(2, width, width, dtype=dtype_of(self.precision), device=device)
        product(left, right)
        seconds = median(self.machine.seconds(lambda: product(left, right)) for _ in range(5))
        return 2 * width**3 / seconds

    def augmentation_seconds(self) -> float:
        """Return the median seconds that one thread of the CPU needs to augment a batch."""
        sizes = np.array([image.shape[:2] for image in self.images])
        chances = RECIPE.crop_scale, RECIPE.flip_probability
        crops = draw_crops(sizes, *chances, np.random.default_rng(0))

        def work() -> None:
            cut(self.images, crops, self.image_size)

        work()
        return median(self.machine.seconds(work) for _ in range(5))


def random_backbone(clip: ClipConfig) -> Backbone:
    """Return a backbone with random weights that keep all activations finite."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.02 * torch.randn(shape, generator=generator)
        for name, shape in tensor_shapes(clip).items()
    }
    for name, value in weights.items():
        if "ln_" in name and name.endswith("weight"):
            value += 1
    return Backbone(clip, weights, sha256="random")
