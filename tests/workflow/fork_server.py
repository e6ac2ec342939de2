"""Runs `blocklora`, or a stand-in, in forks of one process that has imported what it needs.

The imports take seconds, most of the time of a small job. `python -m tests.workflow.fork_server
SOCKET` serves calls, until its standard input ends, of the program that `client` returns; with the
word `stand-in` it is `stand_in.py` that answers them.
"""

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
FURTHER = (
    "blocklora.data.fetch",
    "blocklora.publish.tables.cost",
    "blocklora.theory.efficiency",
    "blocklora.theory.compression",
    "jsonschema",
)
CLIENT = """
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({!r})
socket.send_fds(server, [json.dumps([os.getcwd(), sys.argv[1:]]).encode()], [1, 2])
sys.exit(int(server.recv(9) or 1))
"""


def client(path: Path) -> str:
    """Return a program that behaves like `blocklora` and lets the server at `path` do it."""
    command = shlex.join([sys.executable, "-I", "-S", "-c", CLIENT.format(str(path))])
    return f'#!/bin/bash\nexec {command} "$@"\n'


@contextmanager
def served(path: Path, *words: str, **variables: str) -> Iterator[str]:
    """Start a server at the socket `path` during the block, and yield the program of `client`."""
    command = [sys.executable, "-m", __name__, str(path), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        yield client(path)
        process.stdin.close()


def serve(path: str, main: Callable[[list[str]], int]) -> None:
    """Serve calls of `main` at the socket `path`; print a line when ready."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    connection.sendall(str(_answer(connection, main)).encode())
                    os._exit(0)


def _answer(connection: socket.socket, main: Callable[[list[str]], int]) -> int:
    message, streams, *_ = socket.recv_fds(connection, 2**16, 2)
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)
    folder, arguments = json.loads(message)
    os.chdir(folder)
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _real() -> Callable[[list[str]], int]:
    """Import what commands need and return the command line."""
    from blocklora.backbones.prompts import tokenize
    from tests.faults.pipeline import PRELOAD

    for module in (*PRELOAD, *FURTHER):
        import_module(module)
    tokenize([""], 2)  # reads the vocabulary
    return import_module("blocklora.cli").main


if __name__ == "__main__":
    if "stand-in" in sys.argv:
        from tests.workflow.stand_in import main
    else:
        main = _real()
    serve(sys.argv[1], main)
