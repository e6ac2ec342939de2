"""Runs and tests, the units of work of a study, and where their files are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A run: one fit and its tests. A method that is not trained has 0 shots and seed 0."""

    backbone: str
    dataset: str
    method: str
    shots: int
    seed: int

    @property
    def folder(self) -> str:
        """The run's folder below `runs/`."""
        return f"{self.backbone}/{self.dataset}/{self.method}/{self.shots}shot/seed{self.seed}"

    @property
    def own_tests(self) -> tuple["Test", ...]:
        """The tests on the run's dataset: on its test images and, after a fit, training images."""
        tested = Test(self, self.dataset)
        return (tested, Test(self, self.dataset, "train")) if self.shots else (tested,)


@dataclass(frozen=True)
class Test:
    """A test of a run on the images of its own dataset or of another one.

    Attributes:
        run: The run.
        dataset: The dataset whose images are classified.
        part: "test", or "train" for the training images of the run without augmentation.
    """

    __test__ = False  # keeps pytest from collecting it

    run: Run
    dataset: str
    part: str = "test"

    @property
    def file(self) -> str:
        """The path of the predictions below `runs/`."""
        return f"{self.run.folder}/tests/{self.dataset}/{self.part}.safetensors"
