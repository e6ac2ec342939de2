"""Reading YAML files strictly, and telling what is wrong with them.

PyYAML follows YAML 1.1, in which `1e-6` is a string, `on` is a boolean, and the second of two equal
keys silently wins. Any of these can spoil a night of training. So scalars are read as in YAML 1.2
here, and duplicate keys are errors.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from blocklora.errors import UserError


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads what JSON can express: YAML 1.2 scalars, lists, and mappings without duplicate keys.

    It uses libyaml if PyYAML has it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of `node`, in which each key must be a scalar and unique."""
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
        return super().construct_mapping(node, deep)


# Other tags, such as !!binary, have no constructor, so they are refused with their place.
TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
StrictLoader.yaml_constructors = {
    tag: StrictLoader.yaml_constructors[tag]
    for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in TYPES))
}

# The core schema of YAML 1.2.2, section 10.3.2, and the merge key of YAML 1.1, which lets studies
# define methods that differ in a value or two in a line each.
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
        UserError: The file is missing, cannot be read, is not YAML or has a key twice.
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
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


class _PlainDumper(yaml.SafeDumper):
    """Writes parts that occur several times out in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(document: Any, flow_style: bool | None = False) -> str:
    """Return a document as YAML with its keys in their order; `flow_style` is that of PyYAML."""
    how = {"sort_keys": False, "allow_unicode": True, "width": 100}
    return yaml.dump(document, Dumper=_PlainDumper, default_flow_style=flow_style, **how)
