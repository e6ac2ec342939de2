"""Runs `blocklora` in forks of one process that has imported what commands need.

The imports take seconds, most of the time of a small job. `python -m tests.workflow.fork_server
SOCKET` serves calls, until its standard input ends, of the program that `client` returns.
"""

import json
import os
import select
import shlex
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

from blocklora.backbones.prompts import tokenize
from tests.faults.pipeline import PRELOAD

MODULES = (
    *PRELOAD,
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


def serve(path: str) -> None:
    """Serve calls at the socket `path`; print a line when ready."""
    for module in MODULES:
        import_module(module)
    tokenize([""], 2)  # reads the vocabulary
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
                    connection.sendall(str(_answer(connection)).encode())
                    os._exit(0)


def _answer(connection: socket.socket) -> int:
    message, streams, *_ = socket.recv_fds(connection, 2**16, 2)
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)
    folder, arguments = json.loads(message)
    os.chdir(folder)
    from blocklora.cli import main

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


if __name__ == "__main__":
    serve(sys.argv[1])
