"""Reading YAML files strictly, with an error that names the place of a fault, and writing YAML.

PyYAML follows YAML 1.1, in which `1e-6` is a string and `on` is a boolean, and it silently keeps
the last of two equal keys. Any of these can spoil a night of training, so scalars are read as in
YAML 1.2 here, and duplicate keys are errors.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from blocklora.errors import UserError


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads the values of JSON: YAML 1.2 scalars, lists, and mappings without duplicate keys.

    It uses libyaml if PyYAML was built with it.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the mappings under `<<` into `node`, whose keys must be scalars and unique.

        A node with several aliases is merged and checked once, because merging changes it.

        Raises:
            ConstructorError: A key is a list or a mapping, or occurs twice.
        """
        if node in self._flat:
            return
        self._flat.add(node)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key has to be a word or a number"
            elif key_node.value in seen:
                problem = f"the key {key_node.value!r} occurs twice"
            else:
                seen.add(key_node.value)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        super().flatten_mapping(node)


# Other tags, such as !!binary, have no constructor, so an error names the place of such a tag.
TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
StrictLoader.yaml_constructors = {
    tag: StrictLoader.yaml_constructors[tag]
    for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in TYPES))
}
# PyYAML would read 010 as an octal number.
StrictLoader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)

# The patterns are those of the core schema of YAML 1.2.2 (section 10.3.2), except for octal and
# hexadecimal numbers, infinity and NaN. The merge key is from YAML 1.1: it lets a study define
# methods that differ in a value or two in one line each.
StrictLoader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), [*first, ""]
    )


def read_yaml(path: str | Path) -> Any:
    """Return the document in the YAML file `path`.

    Raises:
        UserError: The file is missing, cannot be read, is not valid YAML or has a key twice.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


class _PlainDumper(yaml.SafeDumper):
    """Writes a part that occurs several times in full each time, and not as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(document: Any, flow_style: bool | None = False) -> str:
    """Return a document as YAML that keeps the order of keys.

    `flow_style` is the argument `default_flow_style` of PyYAML.
    """
    how = {"sort_keys": False, "allow_unicode": True, "width": 100}
    return yaml.dump(document, Dumper=_PlainDumper, default_flow_style=flow_style, **how)
