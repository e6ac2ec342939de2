"""A file that cannot be written is reported in one line, and other errors are left as they are."""

import errno
import os
import resource
from pathlib import Path

import pytest

from blocklora.errors import UserError
from blocklora.files import atomic_path, copy_file, write_text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_folder_that_cannot_be_made_is_reported_for_the_file(tmp_path, monkeypatch, number, depth):
    path = tmp_path / "results/runs/a.json"

    def refuse(folder, **_):
        raise OSError(number, os.strerror(number), str([folder, *folder.parents][depth]))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=rf"a\.json: cannot be written \({os.strerror(number)}\)"):
        write_text(path, "text")


def test_copy_that_finds_no_room_is_reported_for_the_target(tmp_path):
    source, target = tmp_path / "source", tmp_path / "copies/target"
    source.write_bytes(bytes(2**20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(UserError, match=r"target: cannot be written \(File too large\)"):
            copy_file(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(target.parent.iterdir()) == []


def test_source_that_cannot_be_read_is_not_reported_as_a_target(tmp_path):
    with pytest.raises(FileNotFoundError):
        copy_file(tmp_path / "absent/source", tmp_path / "target")


def test_error_about_another_folder_passes_through(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "target"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/file")
