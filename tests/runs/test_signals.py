"""Signals during the training of a process: told, and out of the way of computations."""

import signal
import subprocess
import sys
from threading import Event, Thread
from time import monotonic, sleep

import pytest

from blocklora.runs.interruption import SIGNALS, catch_interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_told_and_kills_nobody(number):
    with catch_interruption() as interruption:
        assert interruption.signal_name is None
        signal.raise_signal(number)
        assert interruption.signal_name == number.name


def test_threads_started_in_the_block_keep_the_signals_waiting():
    masks = []
    with catch_interruption():
        thread = Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        thread.start()
        thread.join()
    assert masks[0] >= set(SIGNALS)


def test_a_signal_to_a_thread_that_was_there_before_is_told():
    sent = Event()
    thread = Thread(target=sent.wait)
    thread.start()
    with catch_interruption() as interruption:
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        deadline = monotonic() + 10
        while interruption.signal_name is None and monotonic() < deadline:
            sleep(0.001)
        assert interruption.signal_name == "SIGTERM"
    sent.set()
    thread.join()


def test_handlers_and_mask_are_restored_afterwards():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with catch_interruption():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert signal.sigpending() == set()


# A signal every half millisecond, to all threads, for as long as matrices are multiplied.
STORM = """
import os, signal, time
from threading import Thread
from blocklora.runs.interruption import catch_interruption

def send():
    while working:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.0005)

with catch_interruption() as interruption:
    import torch
    from blocklora.engine.products import product

    x, weight = torch.randn(64, 512), torch.randn(64, 512)
    expected, end, working = product(x, weight), time.monotonic() + 2, True
    sender = Thread(target=send)
    sender.start()
    equal = True
    while time.monotonic() < end:
        equal = equal and torch.equal(product(x, weight), expected)
    working = False
    sender.join()
    assert equal
    assert interruption.signal_name == "SIGTERM"
"""


def test_signals_do_not_reach_the_memory_of_matrix_products():
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
