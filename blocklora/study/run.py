"""Runs and tests, which are the units of work of a study, and the paths of their files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A run, which is one fit of a method and its tests.

    A method that is not trained has runs without a fit, whose shots and seed are 0.

    Attributes:
        backbone: The name of the backbone in the study.
        dataset: The name of the dataset in the study.
        method: The name of the method in the study.
        shots: The number of training images per class.
        seed: The seed of the draw of training images and of the training.
    """

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
        """The tests on the dataset's test images and, after a fit, on the run's training images."""
        tested = Test(self, self.dataset)
        return (tested, Test(self, self.dataset, "train")) if self.shots else (tested,)


@dataclass(frozen=True)
class Test:
    """A test of a run on the images of its own dataset or of another one.

    Attributes:
        run: The run.
        dataset: The dataset whose images are classified.
        part: "test" for test images, or "train" for the run's training images, unaugmented.
    """

    __test__ = False  # keeps pytest from collecting it

    run: Run
    dataset: str
    part: str = "test"

    @property
    def file(self) -> str:
        """The path of the file of predictions below `runs/`."""
        return f"{self.run.folder}/tests/{self.dataset}/{self.part}.safetensors"
