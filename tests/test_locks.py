import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from blocklora import locks
from blocklora.errors import Interrupted, UserError
from blocklora.locks import LockedError, hold, hold_when_free, is_alive, read_holder

RUN = "run clip/digits/lora/4shot/seed1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 0.6)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints/run.lock"


def forge(path, **changes):
    """Leave a lock behind as a process would that was killed."""
    with hold(path, RUN):
        facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | changes))


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_lock_says_who_holds_it_and_goes_when_released(path):
    with hold(path, RUN):
        holder = read_holder(path)
        assert (holder.pid, holder.what) == (os.getpid(), RUN)
        assert is_alive(holder)
    assert list(path.parent.iterdir()) == []


def test_a_lock_goes_when_the_run_fails(path):
    with pytest.raises(UserError, match="nan"), hold(path, RUN):
        raise UserError("loss is nan")
    assert list(path.parent.iterdir()) == []


def test_a_second_process_is_told_who_works_on_the_run_and_since_when(path):
    with hold(path, RUN):
        since = read_holder(path).since
        with pytest.raises(LockedError) as caught, hold(path, RUN):
            pass
        assert caught.value.exit_status == 75
        holder = f"process {os.getpid()} on {locks.socket.gethostname()}, since {since}"
        assert str(caught.value).startswith(f"{RUN}: {holder} is working on it")
        assert read_holder(path).since == since


def test_the_lock_of_a_killed_process_is_taken_over(path):
    code = (
        "import sys, time; from pathlib import Path; from blocklora.locks import hold\n"
        f"with hold(Path({str(path)!r}), 'r'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError), hold(path, RUN):
        pass
    process.send_signal(signal.SIGKILL)
    # Not waited for yet: a zombie still has its number, but works on nothing.
    time.sleep(0.1)
    with hold(path, RUN):
        assert read_holder(path).pid == os.getpid()
    process.communicate()


def test_a_later_process_with_the_same_number_does_not_keep_a_lock(path):
    forge(path, process_start="1")
    with hold(path, RUN):
        pass


def test_the_lock_of_a_dead_process_is_recognised_on_the_same_machine_at_once(path, monkeypatch):
    monkeypatch.setattr(locks, "_changes", lambda *_: pytest.fail("no need to watch"))
    forge(path, pid=dead_process())
    with hold(path, RUN):
        pass


def test_a_silent_lock_of_another_machine_is_taken_over(path, caplog):
    forge(path, machine="another boot", host="node7", pid=1)
    with hold(path, RUN):
        assert read_holder(path).pid == os.getpid()
    assert "took over from process 1 on node7" in caplog.text


@pytest.fixture
def held_elsewhere(path):
    """Another machine holds the lock and sends heartbeats."""
    forge(path, machine="another boot", host="node7")
    done = threading.Event()

    def beat():
        while not done.wait(0.05):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    yield
    done.set()
    heart.join()


def test_a_lock_of_another_machine_with_a_heartbeat_is_respected(path, held_elsewhere):
    with pytest.raises(LockedError, match="on node7"), hold(path, RUN):
        pass
    assert read_holder(path).host == "node7"


def stop_at(attempt):
    """Return a function that asks the process to stop when it is called for the n-th time."""
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == attempt:
            raise Interrupted("asked to stop")

    return stop


def test_watching_the_lock_of_a_silent_machine_can_be_stopped(path, monkeypatch):
    monkeypatch.setattr(locks, "SILENCE_SECONDS", 60)
    monkeypatch.setattr(locks, "sleep", lambda seconds: None)
    forge(path, machine="another boot", host="node7")
    start = time.monotonic()
    with pytest.raises(Interrupted, match="asked to stop"), hold_when_free(path, RUN, stop_at(3)):
        pass
    assert time.monotonic() - start < 30
    assert read_holder(path).host == "node7"


def test_waiting_for_another_machine_is_said_once(path, held_elsewhere, monkeypatch, caplog):
    monkeypatch.setattr(locks, "WAITING_SECONDS", 0)
    caplog.set_level("INFO")
    with pytest.raises(Interrupted), hold_when_free(path, RUN, stop_at(12)):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"{RUN}: found a lock; watching whether its holder is alive",
        f"{RUN}: waiting for {read_holder(path)}",
    ]


def test_everybody_can_read_a_lock_whatever_the_umask_is(path):
    before = os.umask(0o077)
    try:
        with hold(path, RUN):
            assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_jump_of_the_clock_neither_frees_a_lock_in_use_nor_keeps_a_dead_one(path, jump):
    with hold(path, RUN):
        content = path.read_text().replace(locks._machine(), "another boot")
        path.write_text(content)  # same file, so that the holder's heartbeat goes on
        os.utime(path, (time.time() + jump,) * 2)
        with pytest.raises(LockedError), hold(path, RUN):
            pass
    forge(path, machine="another boot")
    os.utime(path, (time.time() + jump,) * 2)
    with hold(path, RUN):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"pid": 1}', b"null"])
def test_a_damaged_lock_is_watched_and_then_replaced(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    with hold(path, RUN):
        assert read_holder(path).what == RUN
    assert "a damaged lock" in caplog.text


def test_the_heartbeat_changes_the_file(path):
    with hold(path, RUN):
        before = path.stat().st_mtime_ns
        time.sleep(0.2)
        assert path.stat().st_mtime_ns > before


def test_a_holder_whose_lock_was_taken_over_notices_and_leaves_the_new_one(path):
    with hold(path, RUN) as lock:
        lock.require()
        path.unlink()
        with hold(path, "another run"):
            time.sleep(0.2)
            with pytest.raises(Interrupted, match="another process took over the lock"):
                lock.require()
            assert read_holder(path).what == "another run"


def test_a_lock_that_another_machine_removed_over_nfs_is_lost(path, monkeypatch):
    with hold(path, RUN) as lock:

        def stale(descriptor):
            raise OSError(errno.ESTALE, "Stale file handle")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", stale)
            time.sleep(0.2)
        assert lock.lost


def test_a_holder_that_lost_its_lock_does_not_touch_the_new_one(path, monkeypatch):
    with hold(path, RUN) as lock:
        path.write_text("taken by another process")
        lock.lost = True
        monkeypatch.setattr(locks, "_remove", lambda *_: pytest.fail("it is not ours"))
    assert path.read_text() == "taken by another process"


def test_a_lock_that_was_taken_anew_in_between_is_given_back(path):
    forge(path)
    judged = path.read_bytes()
    path.write_text("taken by a third process in the meantime")
    locks._remove(path, judged)
    assert path.read_text() == "taken by a third process in the meantime"
    assert len(list(path.parent.iterdir())) == 1


def test_exactly_one_of_many_processes_gets_a_dead_lock(path):
    forge(path, pid=dead_process())
    code = (
        "import sys, time; from pathlib import Path\n"
        "from blocklora.locks import LockedError, hold\n"
        "sys.stdin.readline()\n"
        "try:\n"
        f"    with hold(Path({str(path)!r}), 'r'):\n"
        "        print('held', flush=True); sys.stdin.readline()\n"
        "except LockedError: print('refused', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sorted(answers) == ["held"] + ["refused"] * 5
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(path):
    path.parent.write_text("a file where the folder should be")
    with (
        pytest.raises(UserError, match=re.escape(f"{path}: cannot write this lock file for {RUN}")),
        hold(path, RUN),
    ):
        pass
