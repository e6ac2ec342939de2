"""Processes that each hold an object and call its methods on request.

This keeps the memory of each measurement separate and lets the measurements take turns.
"""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from blocklora.errors import UserError


class OutOfMemory(UserError):
    """A worker ran out of memory and was stopped."""


MEMORY_RAN_OUT = "memory ran out; try --memory, smaller --batch-sizes or fewer --classes"
GRACE_SECONDS = 10

# PyTorch is imported once, in a server that computes nothing and from which workers are forked.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["blocklora.performance.trial"])


class Worker:
    """An object in a process of its own."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        """Start the process, which makes the object by `build(*arguments)` at the first request."""
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, build, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return the result of a method of the object.

        Raises:
            OutOfMemory: There was not enough memory.
            UserError: The method or `build` raised it, or the process has ended.
        """
        try:
            self._pipe.send((method, arguments))
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode == -signal.SIGKILL:  # Linux sends it if memory runs out
                raise OutOfMemory(MEMORY_RAN_OUT) from None
            raise UserError("a measuring process has ended; its error is above") from None
        if isinstance(answer, UserError):
            self.close()
            raise answer
        return answer

    def close(self) -> None:
        """Ask the process to end by closing the pipe, and kill it if it takes too long."""
        self._pipe.close()
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer requests until the other end of the pipe is closed.

    A `UserError` and a lack of memory are answers, too; any other error ends the process.
    """
    from blocklora.engine.memory import is_out_of_memory

    # Ctrl-C reaches all processes of the terminal, but the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subject = None
    while True:
        try:
            method, values = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            subject = subject or build(*arguments)
            answer = getattr(subject, method)(*values)
        except UserError as error:
            answer = error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            answer = OutOfMemory(MEMORY_RAN_OUT)
        with suppress(ConnectionError):
            pipe.send(answer)
