"""The choice of a GPU for each job on a machine that has several.

Snakemake counts GPUs, but does not say which one a job gets. Each job therefore takes one by
holding a lock, which is released when the process ends, however it ends. If there are more jobs
than GPUs, they share the GPUs evenly. If a batch system lets a job see only one GPU, that choice is
kept.
"""

import logging
import os
import re
import shutil
import subprocess
import tempfile
from itertools import product
from pathlib import Path

logger = logging.getLogger(__name__)

JOBS_PER_GPU = 8  # further jobs all compute on the first GPU
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[object] = []  # a lock that is no longer referenced is released


def claim_gpu(device: str) -> None:
    """Make the least used GPU the only one that this process sees, if `device` is "cuda".

    It has to be called before CUDA is initialised, because it has no effect afterwards.
    """
    if device != "cuda":
        return
    gpus = _visible_gpus()
    if len(gpus) < 2:
        return
    from filelock import FileLock, Timeout

    for share, gpu in product(range(JOBS_PER_GPU), gpus):
        name = f"blocklora-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}-{share}.lock"
        lock = FileLock(Path(tempfile.gettempdir(), name))
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # held by another job, or left behind by another user
            continue
        _held.append(lock)
        os.environ[VISIBLE] = gpu
        logger.info("computing on GPU %s; number of other jobs on it: %d", gpu, share)
        return
    logger.warning("every GPU already has %d jobs, so this one shares the first", JOBS_PER_GPU)


def _visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"^GPU \d+: .*\(UUID: (\S+)\)", listing.stdout, re.MULTILINE)
