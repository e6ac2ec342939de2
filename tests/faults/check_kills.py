"""SIGKILL at random moments of the whole embedded study, Snakemake and all its jobs together.

Run by `make test-faults`; takes about an hour. BLOCKLORA_FOLDER may name a folder that holds
the study's results already; without it they are made first.
"""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.pipeline import content

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BLOCKLORA_KILLS", "100"))
# A call lives so long at most before it is killed: one of these, by chance. Jobs that take a minute
# and begin anew must have a chance to end, and short ones to be met.
LONGEST_SECONDS = (10.0, 30.0, 150.0)
COMPARED = ("runs/**/*.*", "shots/**/*.csv", "pixels/**/*.np?", "backbones/*", "theory/*.csv")


def start(folder):
    """Start the study in a folder, or go on with it, and return the process."""
    command = [
        "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder),
        "--cores", "2", "--nolock", "--config", "device=cpu",
    ]  # fmt: skip
    with (folder / "output.txt").open("w") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def new_folder(path):
    path.mkdir()
    shutil.copy(ROOT / "config.yaml", path)
    return path


def results(folder):
    """Return what the results say by their paths, without times and memory."""
    place = folder / "results/mini"
    paths = [path for pattern in COMPARED for path in place.glob(pattern)]
    return {
        str(path.relative_to(place)): content(path)
        for path in [*paths, place / "runs.csv"]
        if not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    if "BLOCKLORA_FOLDER" in os.environ:
        return results(Path(os.environ["BLOCKLORA_FOLDER"]))
    folder = new_folder(tmp_path_factory.mktemp("undisturbed") / "study")
    assert start(folder).wait() == 0, (folder / "output.txt").read_text()
    return results(folder)


def test_killed_again_and_again_the_study_ends_with_the_same_results(undisturbed, tmp_path):
    """The study is begun anew whenever it is finished before enough kills."""
    generator = random.Random(1)
    kills = completed = 0
    while kills < KILLS:
        folder = new_folder(tmp_path / f"study{completed}")
        killed_here = 0
        while True:
            process = start(folder)
            try:
                longest = generator.choice(LONGEST_SECONDS)
                wait = generator.uniform(0, longest) if kills < KILLS else None
                status = process.wait(wait)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills, killed_here = kills + 1, killed_here + 1
        assert status == 0, (folder / "output.txt").read_text()[-8000:]
        assert results(folder) == undisturbed
        assert list((folder / "cache/unfinished").iterdir()) == []
        completed += 1
        print(f"\nstudy {completed}: equal results after {killed_here} kills", flush=True)
    print(f"{kills} of {kills} random kills ended in equal results")
