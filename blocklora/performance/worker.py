"""Processes that measure when they are told to, so that memory is apart and all take turns."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from blocklora.errors import UserError


class OutOfMemory(UserError):
    """A worker ran out of memory and has ended."""


MEMORY_RAN_OUT = "memory ran out; try --memory, smaller --batch-sizes or fewer --classes"
GRACE_SECONDS = 10

# PyTorch is imported once; each worker is forked from there, before it computes anything.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["blocklora.performance.trial"])


class Worker:
    """An object in a process of its own."""

    def __init__(self, build: Callable[..., Any], *arguments: Any) -> None:
        """Start the process; `build(*arguments)` makes the object there."""
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, build, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return the result of a method of the object.

        Raises:
            OutOfMemory: memory ran out.
            UserError: the device does not do what was asked for, or the process has ended.
        """
        try:
            self._pipe.send((method, arguments))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == -signal.SIGKILL:  # so does Linux when memory runs out
                raise OutOfMemory(MEMORY_RAN_OUT) from None
            raise UserError("a measuring process has ended; its error is above") from None
        if isinstance(answer, UserError):
            self.close()
            raise answer
        return answer

    def close(self) -> None:
        """End the process, which hears that nobody asks any more."""
        self._pipe.close()
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer until the other end hangs up."""
    from blocklora.engine.memory import is_out_of_memory

    # An interruption of the terminal reaches all processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subject = None
    while True:
        try:
            method, values = pipe.recv()
        except EOFError:
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
        with suppress(BrokenPipeError):
            pipe.send(answer)
