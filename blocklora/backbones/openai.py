"""OpenAI's CLIP weights: which models there are, and where their files are published.

The hub's repositories are those open_clip 3.3 resolves the tag `openai` to
(mlfoundations/open_clip: pretrained.py). Revisions are pinned, so an address always means the same
bytes, and a file counts as OpenAI's only if its SHA-256 is one of those below.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from blocklora.backbones.config import ClipConfig
from blocklora.errors import UserError

HUB_FILE = "open_clip_model.safetensors"
ARCHIVE_ADDRESS = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class OpenAIModel:
    """One of OpenAI's models.

    Attributes:
        repository, revision, hub_sha256: of `open_clip_model.safetensors` on the hub.
        archive, archive_sha256: OpenAI's TorchScript file; its digest is part of its address.
    """

    repository: str
    revision: str
    hub_sha256: str
    archive: str
    archive_sha256: str

    @property
    def hub_address(self) -> str:
        """Where the hub, or the mirror named by HF_ENDPOINT, holds the weights."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{HUB_FILE}"

    @property
    def archive_address(self) -> str:
        """Where OpenAI publishes its archive."""
        return f"{ARCHIVE_ADDRESS}/{self.archive_sha256}/{self.archive}"


# The archives' digests are OpenAI's (openai/CLIP: clip/clip.py, also in
# MaxZanella/CLIP-LoRA@358f0d7:clip/clip.py); the hub's are those of its large-file pointers at
# these revisions, which several public projects quote independently.
OPENAI_MODELS = {
    "ViT-B-16-quickgelu": OpenAIModel(
        repository="timm/vit_base_patch16_clip_224.openai",
        revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        hub_sha256="4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        archive="ViT-B-16.pt",
        archive_sha256="5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
    "ViT-B-32-quickgelu": OpenAIModel(
        repository="timm/vit_base_patch32_clip_224.openai",
        revision="a6f597a30f7b82c51704746581f9a4e41421e878",
        hub_sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        archive="ViT-B-32.pt",
        archive_sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "ViT-L-14-quickgelu": OpenAIModel(
        repository="timm/vit_large_patch14_clip_224.openai",
        revision="18d0535469bb561bf468d76c1d73aa35156c922b",
        hub_sha256="9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        archive="ViT-L-14.pt",
        archive_sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
}


def openai_model(name: str) -> OpenAIModel:
    """Return the published files of the open_clip model `name`.

    Raises:
        UserError: OpenAI has no such model, or the name asks for the exact GELU.
    """
    if name in OPENAI_MODELS:
        return OPENAI_MODELS[name]
    if f"{name}-quickgelu" in OPENAI_MODELS:
        raise UserError(
            f"backbone {name}: QuickGELU mismatch: OpenAI's weights were trained with QuickGELU, "
            f"the model {name} computes the exact GELU; write {name}-quickgelu in the study"
        )
    raise UserError(
        f"backbone {name}: no weights of OpenAI are known for it; "
        f"use one of {', '.join(OPENAI_MODELS)}"
    )


def openai_config(name: str) -> ClipConfig:
    """Return the shape of OpenAI's model `name` from the files of the installed open_clip.

    The package is located, not imported, which would cost seconds.

    Raises:
        UserError: OpenAI has no such model, or open_clip does not describe it with QuickGELU.
    """
    openai_model(name)
    (package,) = importlib.util.find_spec("open_clip").submodule_search_locations
    path = Path(package, "model_configs", f"{name}.json")
    config = ClipConfig.from_open_clip(name, json.loads(path.read_text(encoding="utf-8")))
    if not config.quick_gelu:
        raise UserError(
            f"{path}: QuickGELU mismatch: this open_clip describes {name} without QuickGELU, "
            "with which OpenAI's weights were trained; install the locked version of open_clip"
        )
    return config
