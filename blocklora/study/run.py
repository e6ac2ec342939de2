"""Runs and tests, the units of work of a study, and where their files are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One fit; a method that is not trained has one run of 0 shots and seed 0."""

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
        """The tests of the run on its own dataset: test images and, if fitted, shots."""
        tested = Test(self, self.dataset)
        return (tested, Test(self, self.dataset, "train")) if self.shots else (tested,)


@dataclass(frozen=True)
class Test:
    """A fitted method on the images of a dataset, its own or another one.

    Attributes:
        run: the run that was fitted.
        dataset: the dataset whose images are classified.
        part: "test", or "train" for the training images of the run, not augmented.
    """

    __test__ = False  # pytest takes the name for its own

    run: Run
    dataset: str
    part: str = "test"

    @property
    def file(self) -> str:
        """The file of its predictions below `runs/`."""
        return f"{self.run.folder}/tests/{self.dataset}/{self.part}.safetensors"
