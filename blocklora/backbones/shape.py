"""The configuration of a CLIP model, and its conversion from and to open_clip's."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blocklora.errors import UserError
from blocklora.fields import Count, from_values

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# The keys of open_clip's configurations that describe a plain CLIP; others mean another model.
OPEN_CLIP_KEYS = {
    *("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "image_size", "patch_size", "width"),
    *("layers", "heads", "head_width", "context_length", "vocab_size"),
}

PREFIXES = {"vision": "visual.transformer.resblocks", "text": "transformer.resblocks"}
"""Where open_clip keeps the blocks of each tower."""


@dataclass(frozen=True)
class TowerConfig:
    """A transformer of `layers` pre-norm blocks with `width` channels and `heads` heads."""

    width: Count
    layers: Count
    heads: Count


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model with two transformers, in the conventions of open_clip.

    `image_size` and `patch_size` are in pixels, `context_length` is in tokens, and `embed_dim` is
    the width of the space that images and texts share. The activation is x·sigmoid(1.702 x) if
    `quick_gelu`, as in OpenAI's weights, or else the exact GELU. RGB values in [0, 1] are
    normalised by `mean` and `std`.
    """

    name: str
    embed_dim: int
    quick_gelu: bool
    image_size: int
    patch_size: int
    vision: TowerConfig
    text: TowerConfig
    context_length: int
    vocab_size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @property
    def tower_shapes(self) -> dict[str, tuple[int, int]]:
        """The number of layers and the width of each tower."""
        return {
            "vision": (self.vision.layers, self.vision.width),
            "text": (self.text.layers, self.text.width),
        }

    @property
    def vision_tokens(self) -> int:
        """The number of tokens of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_open_clip(cls, name: str, config: dict[str, Any]) -> "ClipConfig":
        """Return the configuration of model `name` from open_clip's JSON `config`.

        Raises:
            ValueError: The model has parts that this project does not compute.
        """
        vision, text = config["vision_cfg"], config["text_cfg"]
        keys = config.keys() | vision.keys() | text.keys()
        if (unknown := keys - OPEN_CLIP_KEYS) or not isinstance(vision["layers"], int):
            found = min(unknown, default="convolutions")
            raise ValueError(f"this is not a plain CLIP with two transformers; it has {found}")
        return cls(
            name=name,
            embed_dim=config["embed_dim"],
            quick_gelu=config.get("quick_gelu", False),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vision=TowerConfig(
                vision["width"], vision["layers"], vision["width"] // vision.get("head_width", 64)
            ),
            text=TowerConfig(text["width"], text["layers"], text["heads"]),
            context_length=text["context_length"],
            vocab_size=text["vocab_size"],
        )

    def to_open_clip(self) -> dict[str, Any]:
        """Return the keyword arguments of `open_clip.model.CLIP` for this configuration."""
        return {
            "embed_dim": self.embed_dim,
            "quick_gelu": self.quick_gelu,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.vision.width,
                "layers": self.vision.layers,
                "head_width": self.vision.width // self.vision.heads,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": self.vocab_size,
                "width": self.text.width,
                "layers": self.text.layers,
                "heads": self.text.heads,
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON-serialisable dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ClipConfig":
        """Return the configuration that `to_json` wrote.

        Raises:
            KeyError: A tower is missing.
            TypeError: Another field is missing, or there is an unknown one.
        """
        towers = {key: TowerConfig(**value[key]) for key in ("vision", "text")}
        return from_values(cls, value | towers)


def open_clip_file(name: str) -> Path:
    """Return the path of a file of the installed open_clip, whose import would take 6 s.

    Raises:
        UserError: open_clip is not installed.
    """
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("open_clip_torch is not installed; install the packages of this project")
    return Path(package.origin).parent / name
