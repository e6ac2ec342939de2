"""The `miniature` section of a study: what is drawn and how the small CLIP is pretrained."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from blocklora.errors import UserError


@dataclass(frozen=True)
class Tower:
    """The shape of one transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Settings:
    """Everything the drawn pictures and the weights of the small CLIP depend on.

    Attributes:
        seed: of the pictures, the captions and the initial weights.
        image_size: side of the pictures in pixels.
        patch_size: side of the patches of the vision transformer in pixels.
        embed_dim: width of the joint space.
        context_length: tokens the text transformer sees.
        vision: shape of the vision transformer.
        text: shape of the text transformer.
        steps: gradient steps of pretraining.
        batch_size: image–caption pairs in a step.
        learning_rate: of AdamW, after the warm-up.
    """

    seed: int
    image_size: int
    patch_size: int
    embed_dim: int
    context_length: int
    vision: Tower
    text: Tower
    steps: int
    batch_size: int
    learning_rate: float


def read_settings(section: Mapping[str, Any]) -> Settings:
    """Return the checked settings of a study's `miniature` section.

    Raises:
        UserError: a key is missing or unknown, or a value is not allowed; the message names it.
    """
    towers = {key: Tower(**_numbers(section.get(key), Tower, key)) for key in ("vision", "text")}
    plain = {key: value for key, value in section.items() if key not in towers}
    settings = Settings(**_numbers(plain, Settings, "", towers))
    if settings.image_size % settings.patch_size:
        raise UserError(
            f"miniature.patch_size: {settings.patch_size} does not divide image_size "
            f"{settings.image_size}"
        )
    for name, tower in towers.items():
        if tower.width % tower.heads:
            raise UserError(
                f"miniature.{name}.heads: {tower.heads} does not divide width {tower.width}"
            )
    return settings


def _numbers(
    section: Any, kind: type, place: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the fields of `kind` from `section` and `given`, each a positive number."""
    given = given or {}
    where = "miniature" + (f".{place}" if place else "")
    types = {field.name: field.type for field in fields(kind) if field.name not in given}
    if not isinstance(section, Mapping) or section.keys() != types.keys():
        found = ", ".join(sorted(map(str, section))) if isinstance(section, Mapping) else section
        raise UserError(f"{where}: needs exactly the keys {', '.join(types)}; found {found}")
    for key, value in section.items():
        least = 0 if key == "seed" else 1
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        rate = isinstance(value, Real) and not isinstance(value, bool) and value > 0
        if not (rate if types[key] is float else whole):
            wanted = "number above 0" if types[key] is float else f"whole number from {least}"
            raise UserError(f"{where}.{key}: {value!r} is not a {wanted}")
    return {**section, **given}
