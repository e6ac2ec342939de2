"""A process that holds an object answers, and says why if it cannot."""

import os
import signal

import pytest

from blocklora.errors import UserError
from blocklora.performance.worker import OutOfMemory, Worker, _serve
from tests.performance.stand_ins import Subject


@pytest.fixture
def worker():
    worker = Worker(Subject)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (("run_out",), OutOfMemory, "memory ran out; try --memory"),
        (("die", signal.SIGKILL), OutOfMemory, "memory ran out; try --memory"),
        (("refuse",), UserError, "not here"),
        (("die", signal.SIGABRT), UserError, "a measuring process has ended"),
    ],
    ids=["out of memory", "killed by the system", "refused", "crashed"],
)
def test_errors_of_a_worker_reach_the_parent(worker, request_, error, message):
    assert worker.ask("add", 1, 2) == 3
    with pytest.raises(error, match=message):
        worker.ask(*request_)


class Broken:
    """An end of a pipe whose other end is lost, which shows in `send` or in `recv`."""

    def __init__(self, error, method):
        self.error, self.method, self.received = error, method, 0

    def send(self, answer):
        if self.method == "send":
            raise self.error

    def recv(self):
        self.received += 1
        if self.method == "recv" or self.received > 1:
            raise self.error
        return "add", (1, 2)

    def close(self):
        """Do nothing; the other end is lost anyway."""


LOST = (EOFError, BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


@pytest.mark.parametrize("method", ["send", "recv"])
@pytest.mark.parametrize("error", LOST)
def test_a_lost_process_is_noticed_on_either_way(worker, method, error):
    """Which of these errors comes is decided by a race."""
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._pipe.close()
    worker._pipe = Broken(error, method)
    with pytest.raises(OutOfMemory):
        worker.ask("add", 1, 2)
    if error is not EOFError or method == "recv":  # nobody sends to the end of a file
        _serve(Broken(error, method), Subject, ())
