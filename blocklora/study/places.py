"""The paths of a study's files, relative to the folder of its results.

The arguments are names and numbers, or wildcards of the workflow in braces.
"""


def backbone(name: str) -> str:
    """Return the path of the weights of a backbone."""
    return f"backbones/{name}.safetensors"


def source(dataset: str) -> str:
    """Return the path of the JSON file that says where the images of a dataset are."""
    return f"data/{dataset}/source.json"


def manifest(dataset: str) -> str:
    """Return the path of a dataset's manifest, which lists its images."""
    return f"data/{dataset}/manifest.csv"


def shots_list(dataset: str, shots: int | str, seed: int | str) -> str:
    """Return the path of a shots list, which lists the images of one draw.

    `shots` is the number of training images per class, and `seed` is the seed of the draw.
    """
    return f"shots/{dataset}/{shots}shot/seed{seed}.csv"


def shots_pixels(dataset: str, shots: int | str, seed: int | str) -> str:
    """Return the path of the decoded training images of a shots list."""
    return f"pixels/{dataset}/{shots}shot/seed{seed}.npz"


def test_pixels(dataset: str, size: int | str) -> str:
    """Return the path of the decoded test images of a dataset, `size` pixels wide and high."""
    return f"pixels/{dataset}/test-{size}px.npy"


def gate(backbone: str, dataset: str) -> str:
    """Return the path of the report that compares a zero-shot accuracy with the known one."""
    return f"gates/{backbone}/{dataset}.json"


RUNS = "runs"
"""The folder of all runs; `Run.folder` and `Test.file` are relative to it."""
