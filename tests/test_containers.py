"""The recipes of the images; nothing is built here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKER = (ROOT / "containers/Dockerfile").read_text()
APPTAINER = (ROOT / "containers/apptainer.def").read_text()
INSTALLATION = "sh environment.post-deploy.sh"


def copied_by_docker():
    lines = re.findall(r"^COPY (.*) \S+$", DOCKER, re.M)
    return {name for line in lines for name in line.split()}


def copied_by_apptainer():
    files = APPTAINER.split("%files\n")[1].split("\n\n")[0]
    return {line.split()[0] for line in files.splitlines()}


def test_both_images_hold_the_same_files_of_the_repository():
    assert copied_by_docker() == copied_by_apptainer()
    assert all((ROOT / name).exists() for name in copied_by_docker())
    assert {"Snakefile", "config.yaml", "studies", "workflow", "blocklora"} <= copied_by_docker()


def test_both_images_start_from_the_same_python():
    (docker,) = re.findall(r"^FROM (\S+)$", DOCKER, re.M)
    (apptainer,) = re.findall(r"^From: (\S+)$", APPTAINER, re.M)
    assert docker == apptainer
    assert docker.startswith("python:3.11-")


@pytest.mark.parametrize("recipe", [DOCKER, APPTAINER])
def test_packages_come_from_the_lock_with_its_hashes(recipe):
    steps = [line for line in recipe.splitlines() if "install" in line or INSTALLATION in line]
    assert [line.strip().removeprefix("RUN ") for line in steps] == [INSTALLATION]
    script = (ROOT / "environment.post-deploy.sh").read_text()
    assert "--require-hashes -r requirements.lock" in script
    assert script.count("pip install") == 2  # the lock, and this package without dependencies
    assert "--no-deps" in script
