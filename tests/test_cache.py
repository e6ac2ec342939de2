"""The cache has one entry for each key, complete or missing, whoever makes it."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from blocklora import locks
from blocklora.cache import ENTRY, Cache, content_digest, place, read_entry, remove
from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.files import file_digest

KIND, KEY = "pixels", "0123abcd" * 8


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def write(text):
    """Return a function that writes this text as the file of an entry, and counts its calls."""

    def write_file(path):
        write_file.calls += 1
        path.write_text(text)

    write_file.calls = 0
    return write_file


def provide(cache, output, text="pixels", *, contents=1, link=True):
    writing = write(text)
    cache.provide(KIND, "digest", contents, "some pixels", output, writing, link=link)
    return writing.calls


@pytest.mark.parametrize("link", [True, False])
def test_a_second_study_gets_what_the_first_one_made(cache, tmp_path, link):
    outputs = [tmp_path / study / "pixels.npy" for study in ("first", "second")]
    assert [provide(cache, output, link=link) for output in outputs] == [1, 0]
    assert [output.read_text() for output in outputs] == ["pixels", "pixels"]
    assert [output.is_symlink() for output in outputs] == [link, link]
    (entry,) = cache.entries()
    assert (entry.kind, entry.about) == (KIND, "some pixels")
    assert entry.files == {"content.npy": {"bytes": 6, "sha256": file_digest(outputs[0])}}


def test_other_contents_are_another_entry(cache, tmp_path):
    assert provide(cache, tmp_path / "a.npy", "a", contents=1) == 1
    assert provide(cache, tmp_path / "b.npy", "b", contents=2) == 1
    assert (tmp_path / "a.npy").read_text() == "a"
    assert len(list(cache.entries())) == 2


def test_a_file_that_is_in_place_is_not_touched(cache, tmp_path):
    """A file that is written again would make the workflow redo what depends on it."""
    for link in (True, False):
        output = tmp_path / f"{link}.npy"
        provide(cache, output, link=link)
        before = output.lstat()
        provide(cache, output, link=link)
        assert output.lstat().st_ino == before.st_ino


def test_links_follow_a_folder_that_is_moved_with_its_cache(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    provide(Cache("cache"), Path("results/study/pixels.npy"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there/results/study/pixels.npy").read_text() == "pixels"


def test_links_work_in_a_folder_that_is_itself_a_link(tmp_path, monkeypatch):
    (tmp_path / "big/deep/results").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/results").symlink_to("../big/deep/results")
    monkeypatch.chdir(tmp_path / "work")
    provide(Cache("cache"), Path("results/study/pixels.npy"))
    assert Path("results/study/pixels.npy").read_text() == "pixels"
    assert not Path("results/study/pixels.npy").readlink().is_absolute()


def test_reading_through_a_link_counts_as_a_use(cache, tmp_path):
    output = tmp_path / "pixels.npy"
    provide(cache, output)
    (entry,) = cache.entries()
    os.utime(entry.folder / ENTRY, (0, 0))
    content_digest(output)
    assert cache.prune(30) == (0, 0)
    assert output.read_text() == "pixels"


def test_an_entry_that_was_removed_leaves_a_link_that_counts_as_missing(cache, tmp_path):
    output = tmp_path / "pixels.npy"
    provide(cache, output)
    (entry,) = cache.entries()
    remove(entry.folder)
    assert list(cache.entries()) == []
    assert not output.exists()
    assert provide(cache, output) == 1
    assert output.read_text() == "pixels"


def cut_short(entry):
    path = entry.folder / "content.npy"
    path.chmod(0o644)
    path.write_text("pix")


def rename_key(entry):
    facts = json.loads((entry.folder / ENTRY).read_text())
    (entry.folder / ENTRY).write_text(json.dumps(facts | {"key": "another"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "has 3 bytes instead of 6"),
        (lambda entry: (entry.folder / "content.npy").unlink(), "is gone from the cache"),
        (lambda entry: (entry.folder / ENTRY).write_text("{"), "not a readable JSON file"),
        (lambda entry: (entry.folder / ENTRY).write_text("[]"), "does not describe an entry"),
        (lambda entry: (entry.folder / ENTRY).unlink(), "no such file"),
        (rename_key, "holds the entry pixels/another"),
    ],
)
def test_a_damaged_entry_is_named_and_made_again(cache, tmp_path, caplog, damage, said):
    output = tmp_path / "pixels.npy"
    provide(cache, output)
    (entry,) = cache.entries()
    damage(entry)
    assert provide(cache, output) == 1
    assert said in caplog.text
    assert str(entry.folder) in caplog.text
    assert output.read_text() == "pixels"
    assert provide(cache, output) == 0


def test_files_of_a_killed_process_are_no_entry(cache, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from blocklora.cache import Cache\n"
        "def write(path): path.write_text('half'); print('begun', flush=True); time.sleep(60)\n"
        f"Cache({str(cache.root)!r}).provide({KIND!r}, 'digest', 1, 'some pixels',"
        f" Path({str(tmp_path / 'pixels.npy')!r}), write, link=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.wait()
    assert list(cache.entries()) == []
    assert provide(cache, tmp_path / "pixels.npy") == 1
    assert [path.name[0] for path in (cache.root / KIND).iterdir()] != ["."]
    assert len(list((cache.root / KIND).iterdir())) == 1


def test_a_second_process_waits_for_the_first_one(cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "WAITING_SECONDS", 0.02)
    caplog.set_level("INFO")
    begun, calls = threading.Event(), []

    def slow(path):
        calls.append(path)
        begun.set()
        time.sleep(0.3)
        path.write_text("pixels")

    def first():
        output = tmp_path / "first.npy"
        cache.provide(KIND, "digest", 1, "some pixels", output, slow, link=True)

    thread = threading.Thread(target=first)
    thread.start()
    begun.wait()
    assert provide(cache, tmp_path / "second.npy") == 0
    thread.join()
    assert len(calls) == 1
    assert f"some pixels: waiting for process {os.getpid()} on" in caplog.text
    assert (tmp_path / "second.npy").read_text() == "pixels"


def test_a_failure_leaves_nothing_behind(cache, tmp_path):
    def fail(path):
        path.write_text("half")
        raise UserError("an image cannot be read")

    with pytest.raises(UserError, match="an image cannot be read"):
        cache.provide(KIND, "digest", 1, "some pixels", tmp_path / "a.npy", fail, link=True)
    assert list((cache.root / KIND).iterdir()) == []
    assert not (tmp_path / "a.npy").exists()


def test_a_file_is_made_even_if_it_cannot_be_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache, output = Cache(tmp_path / "file" / "cache"), tmp_path / "pixels.npy"
    assert provide(cache, output) == 1
    assert output.read_text() == "pixels"
    assert not output.is_symlink()
    assert "so nothing is kept there for other studies" in caplog.text
    assert not cache.add("fits", KEY, "a fit", {"fit.json": output})


def test_a_read_only_cache_is_used(cache, tmp_path, monkeypatch):
    """A cache of somebody else's that one may read, but not write to."""
    provide(cache, tmp_path / "a.npy")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert provide(cache, tmp_path / "b.npy") == 0
    assert provide(cache, tmp_path / "c.npy", contents=2) == 1


def test_a_folder_that_may_not_be_looked_into_keeps_nothing_from_being_made(
    cache, tmp_path, monkeypatch, caplog
):
    """A cache of somebody else's that shows nothing."""
    provide(cache, tmp_path / "a.npy")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert provide(cache, tmp_path / "b.npy") == 1
    assert (tmp_path / "b.npy").read_text() == "pixels"
    assert not (tmp_path / "b.npy").is_symlink()
    assert "Permission denied" in caplog.text


def test_files_of_a_run_are_copied_so_that_they_can_be_carried(cache, tmp_path):
    (tmp_path / "fit.json").write_text("{}")
    assert cache.add("fits", KEY, "a fit", {"fit.json": tmp_path / "fit.json"})
    (tmp_path / "fit.json").write_text("changed later")
    entry = cache.find("fits", KEY)
    place(entry.folder / "fit.json", tmp_path / "other/fit.json", link=False)
    assert (tmp_path / "other/fit.json").read_text() == "{}"
    assert os.access(tmp_path / "other/fit.json", os.W_OK)


def test_the_digest_of_a_link_is_that_of_its_file_and_known_without_reading_it(cache, tmp_path):
    output = tmp_path / "pixels.npy"
    provide(cache, output)
    assert content_digest(output) == file_digest(output)
    (entry,) = cache.entries()
    facts = json.loads((entry.folder / ENTRY).read_text())
    facts["files"]["content.npy"]["sha256"] = "known"
    (entry.folder / ENTRY).write_text(json.dumps(facts))
    assert content_digest(output) == "known"
    with pytest.raises(UserError, match="no such file"):
        content_digest(tmp_path / "absent")


def test_an_entry_is_read_back_as_it_was_made(cache, tmp_path):
    entry = cache.obtain(KIND, KEY, "some pixels", lambda folder: write("a")(folder / "a.npy"))
    assert read_entry(entry.folder) == entry
    assert time.time() - entry.used < 60


def test_the_command_lists_entries_and_makes_room(cache, tmp_path, capsys):
    output = tmp_path / "pixels.npy"
    provide(cache, output)
    cache.add("fits", KEY, "fit of a run", {"fit.json": output})
    arguments = ["cache", "--cache", str(cache.root)]
    assert main([*arguments, "--entries"]) == 0
    listed = capsys.readouterr().out
    assert f"{cache.root}: 2 entries, 0.0 MB" in listed
    assert "fit of a run" in listed

    (entry,) = (entry for entry in cache.entries() if entry.kind == "fits")
    os.utime(entry.folder / ENTRY, (0, 0))
    assert main([*arguments, "--prune", "30"]) == 0
    assert "removed 1 entries" in capsys.readouterr().out
    assert [entry.kind for entry in cache.entries()] == [KIND]
    assert main([*arguments, "--prune", "0"]) == 0
    assert list(cache.entries()) == []
    assert not output.exists()


def test_pruning_spares_what_is_in_work_and_removes_what_killed_processes_left(cache):
    partial = cache.root / KIND / f".{KEY}.partial"
    checkpoint = cache.root / "unfinished" / f"{KEY}.safetensors"
    written = checkpoint.with_name(f".{KEY}-random.safetensors")
    for path in (partial / "content.npy", checkpoint, written):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    locked = (locks.hold(path.with_suffix(".lock"), "work") for path in (partial, checkpoint))
    with next(locked), next(locked):
        cache.prune(0)
        assert all(path.exists() for path in (partial, checkpoint, written))
    cache.prune(0)
    assert not any(path.exists() for path in (partial, checkpoint, written))


def test_pruning_spares_an_entry_that_is_being_completed(cache):
    """Its description is written before its folder gets the final name."""
    partial = cache.root / KIND / f".{KEY}.partial"
    partial.mkdir(parents=True)
    facts = {"kind": KIND, "key": KEY, "about": "some pixels", "files": {}}
    (partial / ENTRY).write_text(json.dumps(facts))
    with locks.hold(partial.with_suffix(".lock"), "work"):
        assert cache.prune(0) == (0, 0)
        assert partial.exists()


@pytest.mark.parametrize(
    "damage", [cut_short, lambda entry: (entry.folder / ENTRY).write_text("{")]
)
def test_pruning_removes_damaged_entries(cache, tmp_path, damage):
    provide(cache, tmp_path / "pixels.npy")
    (entry,) = cache.entries()
    damage(entry)
    cache.prune(0)
    assert not entry.folder.exists()


def test_pruning_touches_nothing_that_is_not_of_the_cache(cache):
    """Somebody may name a folder that has other things in it."""
    for name in (
        "project/source",
        "project/.git",
        "unfinished/notes",
        "photos/2024",
        "photos/cafe",
    ):
        (cache.root / name).mkdir(parents=True)
    (cache.root / "unfinished/own.safetensors").write_text("a file of somebody")
    before = sorted(cache.root.rglob("*"))
    cache.prune(0)
    assert sorted(cache.root.rglob("*")) == before


def test_an_entry_that_may_not_be_removed_is_named(cache, tmp_path, monkeypatch):
    provide(cache, tmp_path / "pixels.npy")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("blocklora.cache.shutil.rmtree", refuse)
    with pytest.raises(UserError, match=r"cannot be removed \(Permission denied\)"):
        cache.prune(0)
