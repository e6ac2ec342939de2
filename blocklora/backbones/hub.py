"""Finding, downloading and verifying the checkpoints of models on the Hugging Face hub."""

from pathlib import Path

from blocklora.backbones.published import PublishedModel
from blocklora.data.download import Downloader, locked
from blocklora.data.registry import Address, RemoteFile
from blocklora.errors import UserError
from blocklora.files import file_digest

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def obtain_checkpoint(model: PublishedModel, weights_root: Path, downloader: Downloader) -> Path:
    """Return the checkpoint of a model below `weights_root`, after downloading it if need be.

    It is downloaded from the Hugging Face hub and named after the model. The repositories are
    public, so no token is used, and none can leak.

    Raises:
        UserError: The hub cannot be reached or sends a file with another checksum, or the file
            cannot be written.
    """
    found = find_checkpoint(model, weights_root)
    if found is not None:
        return found
    target = weights_root / model.hub_file
    with locked(weights_root, target.name):
        if not target.exists():  # another process may have fetched it
            try:
                checksum = f"sha256:{model.sha256}"
                file = RemoteFile(target.name, None, checksum, (Address(model.hub_address),))
                downloader.fetch(file, target)
            except UserError as error:
                address = model.archive or model.hub_address
                place = weights_root / (model.archive_file or model.hub_file)
                raise UserError(
                    f"{error}\nTry again, or fetch {address} in another way and save it as {place}"
                ) from None
    return target


def find_checkpoint(model: PublishedModel, weights_root: Path) -> Path | None:
    """Return the checkpoint of a model below `weights_root`, or None if there is none.

    Possible names are, in this order, the model's name with each of `SUFFIXES`, the publisher's own
    file name, and the path in the cache of Hugging Face's client.
    """
    folder = f"models--{model.repository.replace('/', '--')}/snapshots/{model.revision}"
    names = [*(f"{model.name}{suffix}" for suffix in SUFFIXES), model.archive_file]
    for candidate in [*filter(None, names), f"{folder}/{model.file}"]:
        if (weights_root / candidate).is_file():
            return weights_root / candidate
    return None


def checkpoint_origin(path: Path, model: PublishedModel) -> str | None:
    """Return a description of the origin of a checkpoint, or None if its SHA-256 is not known.

    The digests of the published files are known, and so is the one in `<file>.sha256`, which users
    write with `sha256sum` to vouch for a checkpoint of their own.

    Raises:
        UserError: `<file>.sha256` has another digest.
    """
    digest = file_digest(path)
    if digest == model.sha256:
        return published_origin(model)
    if digest == model.archive_sha256:
        return f"{model.publisher}'s archive {model.archive_file}, SHA-256 {digest}"
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.is_file():
        return None
    words = beside.read_text(encoding="utf-8").split()
    expected = words[0].lower() if words else "nothing"
    if digest != expected:
        raise UserError(
            f"{path}: its SHA-256 is {digest}, but {beside.name} says {expected}; copy the file "
            "again"
        )
    return f"the file {path.name}, SHA-256 {digest}"


def published_origin(model: PublishedModel) -> str:
    """Return a description of the file of a model on the Hugging Face hub."""
    place = f"{model.repository}@{model.revision}"
    return f"{model.publisher}'s weights from {place}, SHA-256 {model.sha256}"
