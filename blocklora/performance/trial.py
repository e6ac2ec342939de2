"""The measurements of the benchmark: trainings on random weights, and the bare device.

The speed does not depend on the values of the weights, so random ones are good enough, and nothing
has to be downloaded. Each object lives in a process of its own; see `worker.py`.
"""

from dataclasses import replace
from statistics import median
from time import perf_counter

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
from blocklora.engine.loop import training_step
from blocklora.engine.plan import Setting
from blocklora.engine.precisions import dtype_of
from blocklora.engine.products import product
from blocklora.performance.machine import Machine
from blocklora.runs.device import peak_memory, reset_peak_memory
from blocklora.theory.counting import flop_counter

LOGIT_SCALE = 100.0
LEARNING_RATE = 2e-4
# Height, width and channels of a typical image of ImageNet.
IMAGE_SHAPE = (375, 500, 3)
# Width of the square matrices whose product measures the rate, which smaller ones would not reach.
PRODUCT_WIDTH = {"cpu": 1024, "cuda": 8192}


class Training:
    """A training whose steps are measured, with AdamW as in a run and always the same batch."""

    def __init__(self, machine: Machine, setting: Setting, engine: str, chunks: Chunks) -> None:
        """Prepare the first step; `engine` is "fast" or "reference".

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
            logit_scale=LOGIT_SCALE,
            seed=0,
            device=device,
            precision=setting.precision,
            chunks=chunks,
        )
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), LEARNING_RATE)
        self.scaler = torch.amp.GradScaler(device, enabled=self.engine.scaled)
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch_size, clip.image_size, clip.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, len(setting.prompts), shape[:1], generator=generator)
        self.images, self.labels = images.to(device), labels.to(device)
        self.done = 0

    def step(self) -> float:
        """Do a step and return its loss.

        The low-rank update is zero at first, so the first loss is the same with every engine.
        """
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

    def peak_memory(self) -> int:
        """Return the peak of memory in bytes: allocated on the GPU, or resident in the process."""
        return peak_memory(self.machine.device)["peak_memory_bytes"]

    def optimizer_seconds(self, steps: int) -> float:
        """Return the mean seconds of an update by the optimizer, over `steps` updates."""
        for parameter in self.adapter.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return self.machine.seconds(self.optimizer.step, steps)

    def busy_seconds(self, steps: int) -> float:
        """Return the mean seconds per step for which a GPU runs kernels; the rest is gaps."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.step_seconds(steps)
        kernels = (
            event.time_range.elapsed_us()
            for event in profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        return sum(kernels) / 1e6 / steps

    def test_seconds(self, images: int) -> tuple[float, float]:
        """Return the seconds for preparing a test, and for testing one of `images` images.

        The preparation merges the adapter into the weights and encodes the prompts.
        """
        prepared: list[Classifier] = []

        def prepare() -> None:
            merged = replace(self.backbone, weights=merge(self.backbone.weights, self.adapter))
            options = LOGIT_SCALE, self.machine.device, self.setting.precision
            prepared.append(Classifier(merged, self.setting.prompts, *options))

        prompts = self.machine.seconds(prepare)
        pixels = np.resize(self.images.cpu().numpy(), (images, *self.images.shape[1:]))
        (classifier,) = prepared
        classifier.predict(pixels[: (len(pixels) + 1) // 2])
        return prompts, self.machine.seconds(lambda: classifier.predict(pixels)) / images


class Device:
    """The speed of the device and of the CPU, apart from training."""

    def __init__(self, machine: Machine, precision: str, image_size: int, batch_size: int) -> None:
        """Prepare matrices and a batch of images.

        Raises:
            UserError: The device is not available or cannot compute in the precision.
        """
        machine.prepare(precision)
        self.machine, self.image_size = machine, image_size
        generator = np.random.default_rng(0)
        self.images = [generator.integers(0, 256, IMAGE_SHAPE, np.uint8) for _ in range(batch_size)]
        shape = (PRODUCT_WIDTH[machine.device],) * 2
        self.left, self.right = (
            torch.randn(shape, dtype=dtype_of(precision), device=machine.device) for _ in range(2)
        )
        self.product_rate()

    def product_rate(self) -> float:
        """Return the operations per second of a large matrix product."""
        seconds = median(
            self.machine.seconds(lambda: product(self.left, self.right)) for _ in range(5)
        )
        return 2 * len(self.left) ** 3 / seconds

    def augmentation_seconds(self) -> float:
        """Return the seconds that one thread of the CPU needs to augment a batch."""
        sizes = np.array([image.shape[:2] for image in self.images])
        crops = draw_crops(sizes, (0.08, 1.0), 0.5, np.random.default_rng(0))
        start = perf_counter()
        cut(self.images, crops, self.image_size)
        return perf_counter() - start


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
