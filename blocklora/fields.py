"""Types for the values in study files, config.yaml and the registry, described for users.

The fields of a configuration, which is a dataclass, have these types. Its validation
(`validation.py`), its part of the JSON schema and all messages about wrong values follow from them.
pydantic is imported only when values are validated, so code that only computes does not need it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal


@dataclass(frozen=True, eq=False)
class Allowed:
    """An annotation of a type that says which values are allowed, for use in `Annotated`.

    Attributes:
        words: A description that completes the sentence "it must be ...".
        limits: Keyword arguments of pydantic's core schema of the type, such as `ge` or `pattern`.
        check: A function that returns the value, or raises `ValueError` if it is not allowed.
        schema: Additions to the JSON schema that express the check.
    """

    words: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Any], Any] | None = None
    schema: Mapping[str, Any] = field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the schema by which pydantic validates the type."""
        schema = {**handler(source), **self.limits}
        if self.check is None:
            return schema
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.check, schema)

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the JSON schema of the type."""
        return {**handler(core), "description": self.words, **self.schema}


def described(kind: Any, words: str) -> Any:
    """Return a type with a description."""
    return Annotated[kind, Allowed(words)]


def one_of(*words: str) -> Any:
    """Return the type of a value that is one of these words."""
    return Annotated[Literal[words], Allowed(f"one of {', '.join(words)}")]


def list_of(item: Any, words: str, in_order: Callable = tuple) -> Any:
    """Return the type of a list of one or more different items.

    The function `in_order` returns items in the order that they must have. By default, any order is
    allowed.
    """

    def check(values: tuple) -> tuple:
        # `min_length` would count only the items that are valid.
        if not values or values != tuple(in_order(dict.fromkeys(values))):
            raise ValueError
        return values

    allowed = Allowed(words, check=check, schema={"minItems": 1, "uniqueItems": True})
    return Annotated[tuple[item, ...], allowed]


def ascending(item: Any, words: str) -> Any:
    """Return the type of a list of one or more different items in ascending order."""
    return list_of(item, words, sorted)


def mapping_of(item: Any, words: str) -> Any:
    """Return the type of a mapping from names to items."""
    return Annotated[dict[Name, item], Allowed(words)]


def text(words: str) -> Any:
    """Return the type of a text that is not empty."""
    return Annotated[str, Allowed(words, {"min_length": 1})]


def some_of(*words: str) -> Any:
    """Return the type of a list of one or more of these words, each at most once."""
    return list_of(one_of(*words), f"a list of different ones of {', '.join(words)}")


Name = Annotated[
    str,
    Allowed(
        "a name of letters, digits, '-', '_' and '.' that starts with a letter or digit",
        {"pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"},
    ),
]
Seed = Annotated[
    int,
    Allowed("a whole number from 0 to 4294967295", {"ge": 0, "le": 2**32 - 1}),
]
Natural = Annotated[int, Allowed("a whole number of at least 0", {"ge": 0})]
Count = Annotated[int, Allowed("a whole number of at least 1", {"ge": 1})]
NotNegative = Annotated[float, Allowed("a number of at least 0", {"ge": 0})]
Positive = Annotated[float, Allowed("a number above 0", {"gt": 0})]
Share = Annotated[float, Allowed("a number from 0 to 1", {"ge": 0, "le": 1})]
PositiveShare = Annotated[float, Allowed("a number above 0 and up to 1", {"gt": 0, "le": 1})]
ShareBelowOne = Annotated[float, Allowed("a number of at least 0 and below 1", {"ge": 0, "lt": 1})]


class Checked(ABC):
    """The base of dataclasses whose values have to fit together, which types cannot express."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: There are faults; the message has a line for each.
        """
        if faults := list(self.faults()):
            raise ValueError("\n".join(faults))

    @abstractmethod
    def faults(self) -> Iterator[str]:
        """Yield each fault as a line that begins with the name of a field."""


def from_values(config: type, values: Mapping[str, Any]) -> Any:
    """Return a configuration with the values in a file; lists become tuples.

    Raises:
        TypeError: A value is missing, or the configuration has no field of a name.
        ValueError: The values do not fit together; see `Checked`.
    """
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def to_values(config: Any) -> dict[str, Any]:
    """Return a configuration as a JSON-serialisable dictionary."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
