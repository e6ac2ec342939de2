"""Finding study files by name, and reading files that extend another study."""

from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.validation import closest, show
from blocklora.yamlfiles import read_yaml


def find_study(study: str | Path, folder: str | Path = "studies") -> Path:
    """Return the path of the study file that `study` names, which is a name in `folder` or a path.

    Raises:
        UserError: There is no such file.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    if str(study) in names:
        return Path(folder) / f"{study}.yaml"
    if Path(study).is_file():
        return Path(study)
    raise UserError(
        f"study: {study} is neither a file nor a study in {folder}{closest(study, names)} "
        f"(there are: {', '.join(names) or 'none'})"
    )


def read_study(path: Path) -> tuple[Any, str]:
    """Return the content of a study file, and the name that messages should use for it.

    A file with `extends: other` inherits from the study `other` in the same folder, or from the
    study file with that path, which is relative to the working directory like all paths in studies.
    Its methods are added to the inherited ones and replace those of the same name. Every other key
    replaces the inherited key. A method or key that is null is removed.

    Raises:
        UserError: A file is missing or not valid YAML, or the value of `extends` is not a study, or
            studies extend each other in a circle.
    """
    document, chain = _resolved(path, ())
    return document, str(path) + "".join(f", which extends {base}" for base in chain[1:])


def _resolved(path: Path, above: tuple[Path, ...]) -> tuple[Any, tuple[Path, ...]]:
    """Return the content of a study file, and the chain of files from it to the last one extended.

    `above` has the files that extend this one, directly or over several steps.
    """
    if path in above:
        circle = " extends ".join(map(str, (*above, path)))
        raise UserError(f"{above[0]}: extends: {circle}; studies may not extend each other")
    document = read_yaml(path)
    if not isinstance(document, dict) or "extends" not in document:
        return document, (path,)
    name = document.pop("extends")
    if not isinstance(name, str):
        words = "the name or the path of a study"
        raise UserError(f"{path}: extends: {show(name)} is not allowed; it must be {words}")
    try:
        base = find_study(name, path.parent)
    except UserError as error:
        raise UserError(f"{path}: extends: {error}") from None
    inherited, chain = _resolved(base, (*above, path))
    if not isinstance(inherited, dict):
        raise UserError(f"{path}: extends: {base} is not a mapping of the keys of a study")
    methods = document.get("methods")
    if isinstance(methods, dict) and isinstance(inherited.get("methods"), dict):
        document["methods"] = _merged(inherited["methods"], methods)
    return _merged(inherited, document), (path, *chain)


def _merged(base: dict[Any, Any], own: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in {**base, **own}.items() if value is not None}
