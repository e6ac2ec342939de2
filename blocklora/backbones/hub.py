"""Checkpoints of published models: found, downloaded, and trusted by their digest."""

from pathlib import Path

from blocklora.backbones.published import PublishedModel
from blocklora.data.download import Downloader, locked
from blocklora.data.registry import Address, RemoteFile
from blocklora.errors import UserError
from blocklora.files import file_digest

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def obtain_checkpoint(model: PublishedModel, weights_root: Path, downloader: Downloader) -> Path:
    """Return the file below `weights_root` that holds a model.

    If there is none, it is downloaded from the hub under the name of the model. The repositories
    are public: no token is looked for, so none can leak.

    Raises:
        UserError: the hub cannot be reached, or what it sends has another checksum.
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
                raise UserError(
                    f"{error}\nTry again, or fetch {model.archive or model.hub_address} by other "
                    f"means and put it into {weights_root}"
                ) from None
    return target


def find_checkpoint(model: PublishedModel, weights_root: Path) -> Path | None:
    """Return the file below `weights_root` that holds a model, if there is one.

    Looked for, in this order: the model's name with each of `SUFFIXES`; the publisher's file name;
    the hub client's cache layout.
    """
    folder = f"models--{model.repository.replace('/', '--')}/snapshots/{model.revision}"
    names = [*(f"{model.name}{suffix}" for suffix in SUFFIXES), model.archive_file]
    for candidate in [*filter(None, names), f"{folder}/{model.file}"]:
        if (weights_root / candidate).is_file():
            return weights_root / candidate
    return None


def verify_checkpoint(path: Path, model: PublishedModel) -> str | None:
    """Check a file against the digests that are known for it and say in words what it is.

    Known are the published digests and that in `<file>.sha256`, as written by `sha256sum`.
    Returns None where neither tells about the file.

    Raises:
        UserError: the digest differs from that in `<file>.sha256`.
    """
    digest = file_digest(path)
    if digest == model.sha256:
        return published_origin(model)
    if digest == model.archive_sha256:
        return f"{model.publisher}'s archive {model.archive_file}, SHA-256 {digest}"
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


def published_origin(model: PublishedModel) -> str:
    """Return in words what the published file of a model is."""
    place = f"{model.repository}@{model.revision}"
    return f"{model.publisher}'s weights from {place}, SHA-256 {model.sha256}"
