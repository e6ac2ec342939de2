"""A GPU of its own for each job, where several jobs share a machine with several GPUs.

A workflow engine counts GPUs without saying which one a job gets, so each job takes one by locking
a file named after it. The lock goes with the process, however that ends. Jobs beyond the number of
GPUs share them evenly. A batch system that shows a job one GPU has chosen already.
"""

import fcntl
import logging
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from itertools import product
from pathlib import Path

logger = logging.getLogger(__name__)

JOBS_PER_GPU = 8  # more cannot be a matter of choice
VISIBLE = "CUDA_VISIBLE_DEVICES"


def claim_gpu(device: str) -> None:
    """Make the least used GPU the only one this process sees, if `device` is "cuda".

    To be called before CUDA is initialised.
    """
    if device != "cuda":
        return
    gpus = _visible_gpus()
    if len(gpus) < 2:
        return
    for share, gpu in product(range(JOBS_PER_GPU), gpus):
        if _lock(gpu, share):
            os.environ[VISIBLE] = gpu
            logger.info("computing on GPU %s, shared with %d other jobs", gpu, share)
            return
    logger.warning("every GPU has %d jobs already; sharing the first one", JOBS_PER_GPU)


def _visible_gpus() -> list[str]:
    """Return the GPUs this process may use, by whatever CUDA takes for a name."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"^GPU \d+: .*\(UUID: (\S+)\)", listing.stdout, re.MULTILINE)


def _lock(gpu: str, share: int) -> bool:
    """Return whether this process now holds one of the shares of a GPU."""
    name = f"blocklora-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}-{share}.lock"
    path = Path(tempfile.gettempdir(), name)
    with suppress(OSError):  # another user's cannot be touched, but locked all the same
        path.touch(mode=0o644)
    try:
        descriptor = os.open(path, os.O_RDONLY)  # stays open as long as the process lives
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True
