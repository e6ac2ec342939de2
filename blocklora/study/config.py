"""What the configuration of a machine means: which study file and which device."""

import shutil
import subprocess
from pathlib import Path

from blocklora.errors import UserError
from blocklora.study.schema import closest


def find_study(study: str, folder: str | Path = "studies") -> Path:
    """Return the file of a study, given by its name in `folder` or by its path.

    Raises:
        UserError: there is no such file.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    if study in names:
        return Path(folder) / f"{study}.yaml"
    if Path(study).is_file():
        return Path(study)
    raise UserError(
        f"study: {study} is neither a file nor a study in {folder}{closest(study, names)} "
        f"(there are: {', '.join(names) or 'none'})"
    )


def resolve_device(device: str) -> str:
    """Return "cuda" or "cpu" for "auto", by asking the NVIDIA driver; other values as they are."""
    if device != "auto":
        return device
    if not shutil.which("nvidia-smi"):
        return "cpu"
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return "cuda" if "GPU 0" in listing.stdout else "cpu"
