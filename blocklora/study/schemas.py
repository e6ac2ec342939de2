"""The JSON schemas of study and configuration files, for editors (`workflow/schemas/`)."""

from collections.abc import Mapping
from typing import Any

from blocklora.experiments import EXPERIMENTS
from blocklora.study.config import Config
from blocklora.study.study import Study
from blocklora.validation import json_schema
from blocklora.yamlfiles import yaml_text


def schema_text(name: str) -> str:
    """Return the schema of "study" or "config" files as YAML."""
    schema = {"study": study_schema, "config": lambda: json_schema(Config)}[name]()
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return yaml_text(about | schema)


def study_schema() -> dict[str, Any]:
    """Return the schema of study files that are complete, and of those that extend another."""
    whole = dict(json_schema(Study))
    definitions, keys = whole.pop("$defs"), dict(whole["properties"])
    keys["experiments"] |= {"items": {"enum": list(EXPERIMENTS)}}
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
