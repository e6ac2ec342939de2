"""The JSON schemas of study and configuration files, for editors (`workflow/schemas/`)."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from blocklora.experiments import EXPERIMENTS
from blocklora.study.config import Config
from blocklora.study.study import Study
from blocklora.validation import json_schema
from blocklora.yamlfiles import yaml_text


def schema_text(name: str) -> str:
    """Return the schema of a kind of file, "study" or "config", as YAML."""
    schema = study_schema() if name == "study" else json_schema(Config)
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return yaml_text(about | schema)


def study_schema() -> dict[str, Any]:
    """Return the schema of study files that are complete, and of those that extend another."""
    whole = deepcopy(json_schema(Study))  # the original is kept, and messages are made from it
    definitions, keys = whole.pop("$defs"), whole["properties"]
    # The type of the field cannot list the names, because experiments import `Study`.
    keys["experiments"]["items"] = {"enum": list(EXPERIMENTS)}
    partial = {key: _or_null(part) for key, part in keys.items()}
    methods = keys["methods"]["patternProperties"]
    of_any_name = {names: _or_null(method) for names, method in methods.items()}
    partial["methods"] = keys["methods"] | {"patternProperties": of_any_name}
    return {
        "description": whole["description"],
        "if": {"required": ["extends"]},
        "then": {"properties": partial, "additionalProperties": False},
        "else": whole,
        "$defs": definitions,
    }


def _or_null(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a part that may also be null, which removes an inherited part."""
    return {"description": part["description"], "anyOf": [part, {"type": "null"}]}
