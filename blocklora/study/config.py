"""The configuration in `config.yaml`: how and where a study is computed on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import AUTO, PRECISIONS
from blocklora.fields import Allowed, NotNegative, Positive, one_of, text
from blocklora.validation import Section, validated
from blocklora.yamlfiles import read_yaml


class Config(Section):
    """The keys of `config.yaml`; the comments in that file explain them."""

    words = "a mapping of the keys in config.yaml"

    study: text("the name of a file in studies/ without .yaml, or the path of a study file")
    data_root: text("the path of a folder")
    weights_root: text("the path of a folder")
    cache: text("the path of a folder")
    device: one_of("auto", "cpu", "cuda")
    precision: one_of(AUTO, *PRECISIONS)
    engine: one_of(*ENGINES)
    job_hours: Positive
    pixel_budget_gb: NotNegative
    scratch: Annotated[str, Allowed("the path of a folder, or empty")]
    gate: one_of("stop", "warn")
    offline: Annotated[bool, Allowed("true or false")]


def read_configuration(files: Sequence[str | Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration after checking it.

    Args:
        files: Configuration files; the keys of later files replace those of earlier ones.
        options: Keys from the command line, which replace those of all files.

    Raises:
        UserError: A file is missing or is not valid YAML, or a key is missing, unknown or has a
            value that is not allowed. Every fault is listed.
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
