"""The GPUs of this machine, and the choice of one for each job.

Snakemake counts GPUs, but does not say which one a job gets. Each job therefore takes one by
holding a lock, which is released when the process ends, however it ends. If there are more jobs
than GPUs, they share the GPUs evenly. If a batch system lets a job see only one GPU, that choice is
kept, and no lock is needed. A GPU that is split into slices (MIG) counts as so many GPUs.
"""

import logging
import os
import re
import shutil
import subprocess
import tempfile
from itertools import product, takewhile
from math import ceil
from pathlib import Path

logger = logging.getLogger(__name__)

JOBS_PER_GPU = 8  # further jobs all compute on the first GPU
VISIBLE = "CUDA_VISIBLE_DEVICES"
HIDING = ("", "-1", "NoDevFiles")
"""Names in CUDA_VISIBLE_DEVICES that hide all GPUs behind them."""
ANSWER_SECONDS = 60.0  # far more than a working driver needs
LISTED = re.compile(r"^(GPU|\s+MIG) .*\(UUID: (\S+)\)", re.MULTILINE)
_held: list[object] = []  # a lock that is no longer referenced is released


def resolve_device(device: str) -> str:
    """Return the device; "auto" becomes "cuda" if there is a GPU, or else "cpu".

    There is a GPU if the NVIDIA driver lists one and CUDA_VISIBLE_DEVICES does not hide it.
    """
    if device != "auto":
        return device
    return "cuda" if shown_gpus() != [] and listed_gpus() else "cpu"


def shown_gpus() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets programs see; None if it is not set."""
    names = os.environ.get(VISIBLE)
    if names is None:
        return None
    return list(takewhile(lambda name: name not in HIDING, map(str.strip, names.split(","))))


def listed_gpus() -> list[str]:
    """Return the names of the GPUs that the NVIDIA driver lists, or of their slices.

    If nvidia-smi fails or does not answer, there is a warning, and GPUs may be missing.
    """
    if not shutil.which("nvidia-smi"):
        return []
    program = subprocess.Popen(
        ["nvidia-smi", "-L"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        listing, _ = program.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()  # without waiting, because a process that a driver holds does not end
        _warn_of_driver(f"does not answer within {ANSWER_SECONDS:g} s")
        return []
    if program.returncode:
        said = " ".join(listing.split()) or f"exit status {program.returncode}"
        _warn_of_driver(f"fails: {said}")
    gpus: list[list[str]] = []
    for kind, name in LISTED.findall(listing):
        if kind == "GPU":
            gpus.append([name])
        else:
            gpus[-1].append(name)
    return [name for gpu, *slices in gpus for name in slices or [gpu]]


def _warn_of_driver(what: str) -> None:
    logger.warning(
        "nvidia-smi %s. GPUs may be missing; repair or restart the NVIDIA driver, or choose the "
        "device cpu (in config.yaml or by --device)",
        what,
    )


def claim_gpu(device: str, jobs: int = 1) -> int:
    """Make the least used of several GPUs the only one that this process sees.

    It has to be called before CUDA is initialised, because it has no effect afterwards.

    Args:
        device: "cpu" or "cuda".
        jobs: How many jobs on this machine may compute on GPUs at a time.

    Returns:
        How many of these jobs may compute on the GPU of this one at a time.
    """
    if device != "cuda":
        return 1
    shown = shown_gpus()
    gpus = listed_gpus() if shown is None else shown
    if len(gpus) > 1:
        _take_one(gpus)
    return ceil(jobs / max(1, len(gpus)))


def _take_one(gpus: list[str]) -> None:
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
