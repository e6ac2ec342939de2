"""The JSON schemas of study and configuration files, and faults under them as readable lines.

A line names the dotted key, the value found and what is allowed. What is allowed stands in the
schema, as the `description` of each key. Most of a schema is a file; what it says of methods and of
the recipe is made of the types that describe them (`blocklora/fields.py`), and the sources of
backbones are those of their families.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from blocklora.backbones.families import FAMILIES
from blocklora.engine.engines import ENGINES
from blocklora.engine.precisions import PRECISIONS
from blocklora.engine.recipe import Recipe
from blocklora.fields import mapping_of, mapping_schema, one_of, properties, schema_of, some_of
from blocklora.methods import METHODS
from blocklora.miniature.settings import Settings


def schema_faults(document: Any, name: str) -> list[str]:
    """Return the faults of `document` under the schema `name`, "study" or "config"."""
    import jsonschema

    # YAML tells 1 from 1.0 and from true, and so do folder names.
    strict = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    )
    dialect = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=strict)
    schema = load_schema(name)
    errors = sorted(
        dialect(schema).iter_errors(document), key=lambda error: list(map(str, error.path))
    )
    return [line for error in errors for line in _explain(error, schema.get("$defs", {}))]


def closest(word: Any, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" for the nearest allowed word, or nothing."""
    nearest = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Return the schema `name`, "study" or "config"."""
    file = resources.files("blocklora.study").joinpath("schemas", f"{name}.schema.yaml")
    schema = yaml.safe_load(file.read_text(encoding="utf-8"))
    if name == "study":
        schema["$defs"] |= _described_parts()
    else:
        for key, words in (("precision", PRECISIONS), ("engine", ENGINES)):
            schema["properties"][key] = schema_of(one_of(*words))
    return schema


def schema_text(name: str) -> str:
    """Return a schema as YAML, for editors."""
    return yaml.safe_dump(load_schema(name), sort_keys=False, allow_unicode=True, width=100)


def _described_parts() -> dict[str, Any]:
    """Return the parts of the schema of studies that follow from descriptions."""
    from blocklora.experiments import EXPERIMENTS  # they build on studies

    drawn = "a mapping of the settings of drawn images and of the small CLIP"
    recipe = schema_of(mapping_of("a mapping of the hyperparameters of training", Recipe))
    return {
        "experiments": schema_of(some_of(*EXPERIMENTS)),
        "backbone": {
            "description": f"a mapping with the key source, one of {', '.join(FAMILIES)}",
            **mapping_schema({"source": schema_of(one_of(*FAMILIES))}),
        },
        "miniature": schema_of(mapping_of(drawn, Settings)),
        "recipe": recipe,
        "own_recipe": {
            "description": "a mapping of the hyperparameters in which a method has its own values",
            "type": "object",
            "additionalProperties": False,
            "properties": recipe["properties"],
        },
        "method": {
            "description": f"a mapping with the key kind, one of {', '.join(METHODS)}",
            "type": "object",
            "required": ["kind"],
            "properties": {"kind": schema_of(one_of(*METHODS))},
            "allOf": [
                {
                    "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                    "then": _method_part(method.config),
                }
                for kind, method in METHODS.items()
            ],
        },
    }


def _method_part(config: type | None) -> dict[str, Any]:
    values = {} if config is None else properties(config)
    further = {"kind": True, **values, "recipe": {"$ref": "#/$defs/own_recipe"}}
    return {**mapping_schema(values), "properties": further}


def _key(parts: Iterable[Any]) -> str:
    """Return a dotted key, `methods.clip_lora.rank` or `shots[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "the file"


def show(value: Any) -> str:
    """Return a value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _explain(error: Any, definitions: Mapping[str, Any]) -> list[str]:
    """Return the lines for one error of the schema with these `$defs`."""
    key = _key(error.absolute_path)
    if error.validator == "additionalProperties":
        allowed = error.schema["properties"]
        return [
            f"{_key([*error.absolute_path, name])}: unknown key{closest(name, allowed)} "
            f"(allowed: {', '.join(allowed)})"
            for name in error.instance
            if name not in allowed
        ]
    if error.validator == "required":
        missing = re.match(r"'(.*)' is a required", error.message)[1]
        part = error.schema["properties"][missing]
        meaning = definitions.get(part.get("$ref", "").rpartition("/")[2], part)["description"]
        return [f"{_key([*error.absolute_path, missing])}: missing; it must be {meaning}"]
    hint = closest(error.instance, error.validator_value) if error.validator == "enum" else ""
    return [f"{key}: {show(error.instance)} is not allowed; it must be {_meaning(error)}{hint}"]


def _meaning(error: Any) -> str:
    """Return the description of the innermost part of the schema that has one."""
    while error is not None:
        if "description" in error.schema:
            return error.schema["description"]
        error = error.parent
    return "something else"
