import errno
import os
import shutil
from pathlib import Path

import pytest

from blocklora.errors import UserError
from blocklora.runs.staging import staged


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "shared" / "test-32px.npy"
    path.parent.mkdir()
    path.write_bytes(b"pixels")
    return path


def test_no_copy_is_made_without_a_folder(file):
    assert staged(file, "") == file


def test_a_copy_is_made_once_in_a_folder_named_by_a_variable(file, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    copy = staged(file, "$NODE_DISK/jobs")
    assert copy.read_bytes() == b"pixels"
    assert (tmp_path / "disk/jobs") in copy.parents
    made = copy.stat().st_mtime_ns
    assert staged(file, "$NODE_DISK/jobs") == copy
    assert copy.stat().st_mtime_ns == made


def test_a_file_that_changed_is_copied_anew(file, tmp_path):
    first = staged(file, str(tmp_path / "disk"))
    file.write_bytes(b"other pixels")
    second = staged(file, str(tmp_path / "disk"))
    assert second != first
    assert second.read_bytes() == b"other pixels"


def test_files_of_the_same_name_are_kept_apart(file, tmp_path):
    other = tmp_path / "shared" / "other" / file.name
    other.parent.mkdir()
    shutil.copy2(file, other)
    assert staged(file, str(tmp_path)) != staged(other, str(tmp_path))


def test_a_full_disk_leaves_the_file_where_it_is(file, tmp_path, monkeypatch, caplog):
    def full(source, target):
        Path(target).write_bytes(b"pix")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert staged(file, str(tmp_path / "disk")) == file
    assert "No space left on device" in caplog.text
    assert [path for path in (tmp_path / "disk").rglob("*") if path.is_file()] == []


def test_another_users_folder_is_not_trusted(file, tmp_path, monkeypatch):
    place = tmp_path / f"blocklora-{os.getuid()}"
    place.mkdir()
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    place.rename(tmp_path / f"blocklora-{mine + 1}")
    assert staged(file, str(tmp_path)) == file


@pytest.mark.parametrize("scratch", ["$NODE_DISK/x", "$EMPTY"])
def test_a_variable_that_is_not_set_is_named(file, monkeypatch, scratch):
    monkeypatch.delenv("NODE_DISK", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError) as caught:
        staged(file, scratch)
    assert f"--scratch: {scratch}: this variable is not set" in str(caught.value)
