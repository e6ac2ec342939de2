import resource

import pytest

from tests.data.http_server import Server


@pytest.fixture
def small_files():
    """Let no file of this process grow beyond 1 MB, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()
