"""About how long fits take, known before anything is there: only to share them out to jobs.

`forecast.py` plans and counts exactly, which takes minutes; here the text of a dataset is its
number of classes times a usual length, and the rate of a device is a guess.
"""

from dataclasses import dataclass
from itertools import product
from math import ceil

from blocklora.backbones.config import ClipConfig
from blocklora.data.registry import load_registry
from blocklora.study.entries import Method
from blocklora.study.model import Study
from blocklora.theory.flops import step_flops

# Operations per second that a training step is taken to achieve. They were not measured: a job that
# takes longer is stopped, and goes on from its checkpoint when it is tried again.
RATES = {"cuda": 30e12, "cpu": 50e9}
START_SECONDS = 5.0  # of a fit, beside its steps
PROMPT_TOKENS = 9
UNKNOWN_CLASSES = 100

UNITS = ("dataset", "shots", "run")
"""What a job can fit: all runs of a dataset, all of a number of shots, or a single one."""


@dataclass(frozen=True)
class Unit:
    """How the fits of a backbone, a dataset and a number of shots are shared out to jobs.

    Attributes:
        name: one of `UNITS`.
        longest_seconds: about how long the longest of these fits takes.
    """

    name: str
    longest_seconds: float

    def job_minutes(self, hours: float) -> int:
        """Return the minutes that a job may take: `hours`, or more if a single fit needs more."""
        return ceil(max(60 * hours, self.longest_seconds / 30))


def fit_units(study: Study, device: str, hours: float) -> dict[tuple[str, str, int], Unit]:
    """Return the largest units whose fits are expected to take so many hours at most.

    The keys are backbone, dataset and shots; `device` is "cpu" or "cuda".
    """
    registry, units = load_registry(), {}
    for backbone, dataset in product(study.backbones, study.datasets):
        shape, entry = study.backbone_config(backbone), registry.get(dataset)
        classes = (entry and entry.classes) or UNKNOWN_CLASSES
        seconds = {
            shots: [
                expected_seconds(shape, study.methods[name], classes, shots, device)
                for name in study.fitted_methods
            ]
            for shots in study.shots
        }
        of_shots = {shots: len(study.seeds) * sum(found) for shots, found in seconds.items()}
        for shots in study.shots:
            if sum(of_shots.values()) <= 3600 * hours:
                name = "dataset"
            else:
                name = "shots" if of_shots[shots] <= 3600 * hours else "run"
            units[backbone, dataset, shots] = Unit(name, max(seconds[shots], default=0.0))
    return units


def expected_seconds(
    shape: ClipConfig, method: Method, classes: int, shots: int, device: str
) -> float:
    """Return about how long one fit takes.

    Args:
        shape: the shape of the backbone.
        method: the method.
        classes: number of classes.
        shots: training images per class.
        device: "cpu" or "cuda".
    """
    if method.adapter is None:
        return START_SECONDS
    prompts = [(classes, PROMPT_TOKENS)]
    flops = step_flops(shape, method.adapter, method.recipe.batch_size, classes, prompts).total
    return START_SECONDS + method.recipe.iterations_per_shot * shots * flops / RATES[device]
