"""The configuration of a machine, `config.yaml`: how and where a study is computed."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import PRECISIONS
from blocklora.fields import Allowed, NotNegative, Positive, one_of, text
from blocklora.validation import Section, validated
from blocklora.yamlfiles import read_yaml


class Config(Section):
    """The keys of `config.yaml`, whose comments say what they are for."""

    words = "a mapping of the keys in config.yaml"

    study: text("the name of a file in studies/ without .yaml, or the path of a study file")
    data_root: text("the path of a folder")
    weights_root: text("the path of a folder")
    cache: text("the path of a folder")
    device: one_of("auto", "cpu", "cuda")
    precision: one_of(*PRECISIONS)
    engine: one_of(*ENGINES)
    job_hours: Positive
    pixel_budget_gb: NotNegative
    scratch: Annotated[str, Allowed("the path of a folder, or empty")]
    gate: one_of("stop", "warn")
    offline: Annotated[bool, Allowed("true or false")]


def read_configuration(files: Sequence[str | Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked keys of configuration files, each of which replaces those before it.

    Args:
        files: The files.
        options: Keys that were given on the command line, which replace those of the files.

    Raises:
        UserError: A file is missing or is not valid YAML, or a key is missing, unknown or has a
            value that is not allowed; every fault is listed.
    """
    merged: dict[str, Any] = {}
    for path in files:
        document = read_yaml(path)
        validated(Annotated[dict, Allowed(Config.words)], document, path)
        merged |= document
    merged |= options
    where = " and ".join([*map(str, files), *(["--config"] if options else [])])
    validated(Config, merged, where)
    return merged


def resolve_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto", by asking the NVIDIA driver; other values as they are."""
    if device != "auto":
        return device
    if not shutil.which("nvidia-smi"):
        return "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "cuda" if "GPU 0" in listing.stdout else "cpu"
