"""Checkpoints of OpenAI's models: found, downloaded, and trusted by their digest."""

import logging
from pathlib import Path

from blocklora.backbones.openai import HUB_FILE, openai_model
from blocklora.data.download import Downloader, locked
from blocklora.data.registry import RemoteFile
from blocklora.errors import UserError
from blocklora.files import file_digest

logger = logging.getLogger(__name__)


def obtain_checkpoint(name: str, weights_root: Path, downloader: Downloader) -> Path:
    """Return the file below `weights_root` that holds OpenAI's model `name`.

    If there is none, it is downloaded from the hub to `<weights_root>/<name>.safetensors`. The
    repositories are public: no token is looked for, so none can leak.

    Raises:
        UserError: the hub cannot be reached, or what it sends has another checksum.
    """
    found = find_checkpoint(name, weights_root)
    if found is not None:
        return found
    model = openai_model(name)
    target = weights_root / f"{name}.safetensors"
    checksum = f"sha256:{model.hub_sha256}"
    with locked(weights_root, target.name):
        if not target.exists():  # another process may have fetched it
            try:
                file = RemoteFile(target.name, None, checksum, (model.hub_address,))
                downloader.fetch(file, target)
            except UserError as error:
                raise UserError(
                    f"{error}\nTry again, or fetch {model.archive_address} by other means and "
                    f"put it into {weights_root}"
                ) from None
    return target


def find_checkpoint(name: str, weights_root: Path) -> Path | None:
    """Return the file below `weights_root` that holds OpenAI's model `name`, if there is one.

    Looked for, in this order: `<name>.safetensors` (what `obtain_checkpoint` leaves), `.pt`,
    `.pth` and `.bin`; OpenAI's file name; the hub client's cache layout.
    """
    model = openai_model(name)
    cached = f"models--{model.repository.replace('/', '--')}/snapshots/{model.revision}/{HUB_FILE}"
    names = [f"{name}{suffix}" for suffix in (".safetensors", ".pt", ".pth", ".bin")]
    for candidate in (*names, model.archive, cached):
        if (weights_root / candidate).is_file():
            return weights_root / candidate
    return None


def verify_checkpoint(path: Path, name: str) -> str | None:
    """Check a file against the digests that are known for it and say in words what it is.

    Known are the published digests and that in `<file>.sha256`, as written by `sha256sum`.
    Returns None where neither tells about the file.

    Raises:
        UserError: the digest differs from that in `<file>.sha256`.
    """
    model, digest = openai_model(name), file_digest(path)
    if digest == model.hub_sha256:
        return f"OpenAI's weights from {model.repository}@{model.revision}, SHA-256 {digest}"
    if digest == model.archive_sha256:
        return f"OpenAI's archive {model.archive}, SHA-256 {digest}"
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.is_file():
        return None
    expected = beside.read_text(encoding="utf-8").split(maxsplit=1)[:1]
    if [digest] != [value.lower() for value in expected]:
        raise UserError(
            f"{path}: its SHA-256 is {digest}, but {beside.name} says {''.join(expected)}; "
            "copy the file again"
        )
    return f"the file {path.name}, SHA-256 {digest}"
