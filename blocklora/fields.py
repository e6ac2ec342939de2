"""Types of the values in study files: what is allowed for each, in words and as a JSON schema.

A configuration is a dataclass whose fields have these types. Its part of the schema of study files,
and with it every message about a wrong value, follows from the annotations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints


@dataclass(frozen=True)
class Allowed:
    """What is allowed for a value: in words, and as a JSON schema without them."""

    description: str
    schema: Mapping[str, Any]


def one_of(*words: str) -> Any:
    """Return the type of a value that is one of a few words."""
    return Annotated[str, Allowed(f"one of {', '.join(words)}", {"enum": list(words)})]


def some_of(*words: str) -> Any:
    """Return the type of a list of different ones of a few words."""
    listed = ", ".join(words)
    item = {"description": f"one of {listed}", "enum": list(words)}
    schema = {"type": "array", "minItems": 1, "uniqueItems": True, "items": item}
    return Annotated[tuple[str, ...], Allowed(f"a list of different ones of {listed}", schema)]


def pair_of(description: str, item: str, **schema: Any) -> Any:
    """Return the type of a list of two numbers."""
    items = {"description": item, "type": "number", **schema}
    listed = {"type": "array", "minItems": 2, "maxItems": 2, "items": items}
    return Annotated[tuple[float, float], Allowed(description, listed)]


def mapping_of(description: str, config: type) -> Any:
    """Return the type of a mapping with the fields of a configuration, all of them."""
    return Annotated[config, Allowed(description, mapping_schema(properties(config)))]


def mapping_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a mapping with exactly these keys."""
    closed = {"type": "object", "additionalProperties": False}
    return {**closed, "required": list(fields), "properties": dict(fields)}


Natural = Annotated[int, Allowed("a whole number of at least 0", {"type": "integer", "minimum": 0})]
Count = Annotated[int, Allowed("a whole number of at least 1", {"type": "integer", "minimum": 1})]
NotNegative = Annotated[float, Allowed("a number of at least 0", {"type": "number", "minimum": 0})]
Positive = Annotated[float, Allowed("a number above 0", {"type": "number", "exclusiveMinimum": 0})]
Share = Annotated[
    float, Allowed("a number from 0 to 1", {"type": "number", "minimum": 0, "maximum": 1})
]
ShareBelowOne = Annotated[
    float,
    Allowed(
        "a number of at least 0 and below 1",
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    ),
]


def properties(config: type) -> dict[str, Any]:
    """Return the JSON schema of each field of a configuration, by the names of the fields.

    Raises:
        TypeError: a field has a type that says nothing of what is allowed.
    """
    found = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        if not hasattr(hint, "__metadata__"):
            raise TypeError(f"{config.__name__}.{name} does not say what is allowed")
        found[name] = schema_of(hint)
    return found


def schema_of(described: Any) -> dict[str, Any]:
    """Return the JSON schema of one of these types, with its description."""
    (allowed,) = described.__metadata__
    return {"description": allowed.description, **allowed.schema}


def from_values(config: type, values: Mapping[str, Any]) -> Any:
    """Return a configuration from the values of a file, whose lists become tuples."""
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def to_values(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration as values of JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
