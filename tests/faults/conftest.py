import shutil

import pytest

from tests.faults.pipeline import Runner, make_backbone, make_study, stages


def pytest_configure(config):
    config.addinivalue_line("markers", "faults: slow, run by `make test-faults`")


def pytest_collection_modifyitems(config, items):
    if "faults" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="slow; run by `make test-faults`"))


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Runs one command of `blocklora`."""
    return Runner(tmp_path_factory.mktemp("runner") / "output.txt")


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The file of a very small study of images with hostile names."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def finished(runner, study, tmp_path_factory):
    """The folder of an undisturbed run of the study, and how long each stage took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_backbone(folder)
    seconds = []
    for stage in stages(study):
        outcome = runner(folder, stage.arguments)
        assert outcome.status == 0, f"{stage.name}: {outcome.text}"
        seconds.append(outcome.seconds)
    return folder, seconds


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished study in a folder of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder, symlinks=True)
    return folder
