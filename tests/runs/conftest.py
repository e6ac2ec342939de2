import pytest

from tests.runs.small_study import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with a study, and with its results as they are before anything is fitted."""
    folder = tmp_path_factory.mktemp("study")
    prepare(folder)
    return folder
