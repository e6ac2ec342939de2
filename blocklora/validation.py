"""Validation of the files that users write, with a readable line for every fault.

pydantic finds the faults. A line has the dotted key, the value in the file and the words of
`fields.Allowed` that say what is allowed. These words are looked up in the JSON schema of the type,
so there is one definition for the validator, for editors and for people.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from blocklora.errors import UserError

T = TypeVar("T")

NAME_OF_KEY = "[key]"
"""The last part of pydantic's location of a fault if the name of a key is wrong."""


class Section(BaseModel):
    """A mapping in a document, in which unknown keys are refused and types are not converted.

    Attributes:
        words: A description that completes "it must be ..." if the section is a whole document, or
            else an empty string.
    """

    words: ClassVar[str] = ""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PlainSchema(GenerateJsonSchema):
    """Generates JSON schemas with descriptions for users instead of names and docstrings."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, which only repeat the names of fields."""
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a section, described by its `words` alone."""
        return self._plain(super().model_schema(schema), schema["cls"].words)

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a configuration, described by its fields alone."""
        return self._plain(super().dataclass_schema(schema), "")

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a mapping, which refuses keys whose names are not allowed."""
        found = super().dict_schema(schema)
        return found | ({"additionalProperties": False} if "patternProperties" in found else {})

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """Leave out defaults, because they are not values for users to write."""
        return self.generate_inner(schema["schema"])

    def _plain(self, found: dict[str, Any], words: str) -> dict[str, Any]:
        fields = {key: value for key, value in found.items() if key not in ("title", "description")}
        return {**({"description": words} if words else {}), **fields}


def validated(kind: type[T], document: Any, where: Any) -> T:
    """Return a document as an instance of a type.

    Args:
        kind: The type, which is a subclass of `Section`, a dataclass or any other annotation.
        document: The content of a YAML or JSON file.
        where: The name of the document in messages, such as the path of the file.

    Raises:
        UserError: The document has faults. Each fault is a line that begins with `where`.
    """
    try:
        text = json.dumps(document)
    except ValueError:
        raise UserError(f"{where}: not allowed: an alias refers to a part that it is in") from None
    try:
        # Validating JSON accepts lists for tuples and mappings for classes; a strict validation of
        # Python objects would not.
        return _adapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        # Keys of YAML may be numbers, but those of JSON and of the faults are strings.
        lines = fault_lines(error, json.loads(text), json_schema(kind))
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


@cache
def json_schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a type (draft 2020-12)."""
    return _adapter(kind).json_schema(schema_generator=PlainSchema)


def closest(word: Any, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" for the nearest allowed word, or "" if none is similar."""
    nearest = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def show(value: Any) -> str:
    """Return a value as JSON, cut to at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def fault_lines(error: ValidationError, document: Any, schema: dict[str, Any]) -> list[str]:
    """Return the lines about the faults that pydantic found in a document, sorted by key.

    A fault below another one is left out, because it is about only one of the alternative types.
    """
    found = {}
    for fault in error.errors(include_url=False):
        key = _key(fault, document)
        found.setdefault(key, _explain(fault, key, _nodes(schema, key, document)))
    told = [key for key in found if not any(key[:end] in found for end in range(len(key)))]
    return [line for key in sorted(told, key=lambda key: [*map(str, key)]) for line in found[key]]


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _key(fault: Any, document: Any) -> tuple:
    """Return the keys that lead to a fault, without pydantic's names for alternative types."""
    key, value = [], document
    for part in fault["loc"]:
        with suppress(LookupError, TypeError):
            value = value[part]
            key.append(part)
    if fault["type"] == "missing" and isinstance(value, dict):
        key.append(fault["loc"][-1])
    elif fault["type"].startswith("union_tag"):
        key.append(fault["ctx"]["discriminator"].strip("'"))
    elif fault["loc"][-1:] == (NAME_OF_KEY,):
        key.insert(-1, NAME_OF_KEY)
    return tuple(key)


def _nodes(schema: dict[str, Any], key: tuple, value: Any) -> list[dict[str, Any]]:
    """Return the parts of a JSON schema along the keys to a fault, beginning with the whole schema.

    `value` is the document, in which discriminators choose between alternative parts.
    """

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        name = node.get("$ref", "").rpartition("/")[2]
        return {**schema["$defs"][name], **node} if name else node

    nodes = [resolved(schema)]
    for part in key:
        node = nodes[-1]
        if "discriminator" in node:
            mapping = node["discriminator"]["mapping"]
            kind = value.get(node["discriminator"]["propertyName"])
            if isinstance(kind, str) and kind in mapping:
                node = resolved({"$ref": mapping[kind]})
            else:
                kinds = {"description": f"one of {', '.join(mapping)}", "enum": list(mapping)}
                node = {"additionalProperties": kinds}
            nodes.append(node)
        nodes.append(resolved(_below(node, part)))
        value = value[part] if isinstance(value, list) else (value or {}).get(part)
    return nodes


def _below(node: dict[str, Any], part: Any) -> dict[str, Any]:
    """Return the part of a JSON schema that describes a key or a position."""
    if part == NAME_OF_KEY:
        return node.get("propertyNames", {})
    if isinstance(part, int):
        listed = node.get("prefixItems", [])
        return listed[part] if part < len(listed) else node.get("items", {})
    open_keys = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    return node.get("properties", {}).get(part) or open_keys[0] or {}


def _explain(fault: Any, key: tuple, nodes: list[dict[str, Any]]) -> list[str]:
    """Return the line about a fault, or several lines if a check of several fields wrote them."""
    words = next((n["description"] for n in nodes[::-1] if "description" in n), "a mapping")
    value = fault["input"]
    match fault["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            allowed = nodes[-2]["properties"]
            hint = f"{closest(key[-1], allowed)} (allowed: {', '.join(allowed)})"
            return [f"{_dotted(key)}: unknown key{hint}"]
        case "missing" | "union_tag_not_found" if isinstance(value, dict):
            return [f"{_dotted(key)}: missing; it must be {words}"]
        case "value_error" if checked := str(fault["ctx"]["error"]):
            lines = (f"{_dotted(key)}.{line}" for line in checked.splitlines())
            return [line.removeprefix(".") for line in lines]
        case "union_tag_invalid":
            value = value[key[-1]]
    if NAME_OF_KEY in key:
        key = key[:-2]
    hint = closest(value, nodes[-1].get("enum", ()))
    place = _dotted(key) or "the file"
    return [f"{place}: {show(value)} is not allowed; it must be {words}{hint}"]


def _dotted(key: Sequence[Any]) -> str:
    """Return a dotted key, such as `methods.clip_lora.rank` or `shots[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")
