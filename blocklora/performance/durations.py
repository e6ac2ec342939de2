"""Rough estimates of how long fits take, which decide the fits that share a job of the workflow.

They are made in an instant, before any file of a study exists. (`forecast.py` counts exactly, which
takes seconds and imports PyTorch.) All prompts are assumed to have a typical length, and the speed
of a device is a guess.
"""

from dataclasses import dataclass
from itertools import product
from math import ceil

from blocklora.backbones.shape import ClipConfig
from blocklora.study.entries import Method
from blocklora.study.study import Study, registry
from blocklora.theory.flops import step_flops

# Guesses of the operations per second in a training step. A guess that is too high does no harm: a
# job that takes longer is stopped, and continues from its checkpoint when it is tried again.
RATES = {"cuda": 30e12, "cpu": 50e9}
START_SECONDS = 5.0  # time of a fit before its first step
PROMPT_TOKENS = 9  # a typical number of tokens in a class prompt
MARGIN = 2  # a fit may take this many times as long as expected
UNKNOWN_CLASSES = 100  # assumed of a dataset that is not in the registry

UNITS = ("dataset", "shots", "run")
"""A job fits all runs on a dataset, all of them with one number of shots, or a single run."""


@dataclass(frozen=True)
class Unit:
    """The unit of work of a job, chosen for a backbone, a dataset and a number of shots.

    Attributes:
        name: One of `UNITS`.
        longest_seconds: An estimate of the time of the longest fit with these three.
    """

    name: str
    longest_seconds: float

    def job_minutes(self, hours: float) -> int:
        """Return the time limit of a job: `hours`, or twice the longest fit if that is more."""
        return ceil(max(60 * hours, MARGIN * self.longest_seconds / 60))


def fit_units(study: Study, device: str, hours: float) -> dict[tuple[str, str, int], Unit]:
    """Return the largest units whose fits are expected to take at most `hours`.

    A single run is a unit however long it takes. The keys are (backbone, dataset, shots); `device`
    is "cpu" or "cuda".
    """
    units = {}
    for backbone, dataset in product(study.backbones, study.datasets):
        shape, entry = study.backbone_config(backbone), registry().get(dataset)
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
    """Return an estimate of the seconds that a fit takes; `device` is "cpu" or "cuda"."""
    if method.adapter is None:
        return START_SECONDS
    prompts = [(classes, PROMPT_TOKENS)]
    flops = step_flops(shape, method.adapter, method.recipe.batch_size, classes, prompts).total
    return START_SECONDS + method.recipe.iterations_per_shot * shots * flops / RATES[device]
