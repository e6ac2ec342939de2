"""Downloads from a server that breaks off, lies, redirects or has nothing."""

import hashlib
import os
from pathlib import Path

import pytest

from blocklora.data.download import Downloader, check_file, digest
from blocklora.data.registry import Address, RemoteFile
from blocklora.errors import UserError

CONTENT = os.urandom(3_000_000)
QUICK = Downloader(attempts=3, backoff=0.001, timeout=(2, 2))


def file_at(*addresses, content=CONTENT, size=True, checksum=True):
    sha256 = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return RemoteFile(
        "archive.zip",
        len(content) if size else None,
        sha256 if checksum else None,
        tuple(map(Address, addresses)),
    )


def test_a_file_arrives_whole_and_takes_its_name_last(server, tmp_path):
    server.add("a", CONTENT)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "sub" / "archive.zip")
    assert (tmp_path / "sub" / "archive.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["archive.zip"]


def test_a_cut_transfer_is_continued_where_it_stopped(server, tmp_path):
    # Five cuts are more than three attempts: a transfer that moves on is not given up.
    route = server.add("a", CONTENT, cuts=5)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert route.requests[0] is None
    assert route.requests[1] == "bytes=1500000-"
    assert len(route.requests) == 6


def test_a_transfer_of_another_process_is_continued(server, tmp_path):
    route = server.add("a", CONTENT)
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    QUICK.fetch(file_at(server.url("a"), size=False), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert route.requests == ["bytes=1000-"]


def test_a_finished_part_is_not_downloaded_again(server, tmp_path):
    route = server.add("a", CONTENT)
    (tmp_path / "f.part").write_bytes(CONTENT)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert route.requests == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * (len(CONTENT) + 5)])
def test_a_part_that_does_not_belong_is_thrown_away(server, tmp_path, part):
    server.add("a", CONTENT)
    (tmp_path / "f.part").write_bytes(part)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_all(server, tmp_path):
    server.add("a", CONTENT, cuts=1, ranges=False)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_halves_of_a_file_without_a_checksum_are_not_put_together(server, tmp_path):
    route = server.add("a", CONTENT, cuts=1)
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    QUICK.fetch(file_at(server.url("a"), checksum=False, size=False), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert route.requests == [None, None]


def test_a_redirect_is_followed(server, tmp_path):
    server.add("a", redirect=server.url("b"))
    server.add("b", CONTENT)
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.add("a", CONTENT, fail=[503, 429])
    QUICK.fetch(file_at(server.url("a")), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_addresses_are_tried_in_order_until_the_bytes_are_right(server, tmp_path):
    wrong = server.add("wrong", b"y" * len(CONTENT))
    short = server.add("short", CONTENT[:-1])
    long = server.add("long", CONTENT + b"y")
    page = server.add("page", b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    unused = server.add("unused", CONTENT)
    right = server.add("right", CONTENT)
    names = ["gone", "wrong", "short", "long", "page", "right", "unused"]
    QUICK.fetch(file_at(*map(server.url, names)), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert all(route.requests for route in (wrong, short, long, page, right))
    assert not unused.requests


def test_reasons_are_given_for_each_address_that_fails(server, tmp_path):
    server.add("busy", fail=[503] * 3)
    server.add("wrong", b"y" * len(CONTENT))
    server.add("cut", CONTENT, cuts=99, ranges=False)
    names = ["gone", "busy", "wrong", "cut"]
    with pytest.raises(UserError) as caught:
        QUICK.fetch(file_at(*map(server.url, names), "http://127.0.0.1:9/refused"), tmp_path / "f")
    lines = str(caught.value).splitlines()
    assert lines[0] == "archive.zip cannot be downloaded:"
    for line, (name, reason) in zip(
        lines[1:],
        [
            ("gone", "404 Not Found"),
            ("busy", "503 Service Unavailable (3 attempts)"),
            ("wrong", "sha256"),
            ("cut", "(3 attempts)"),
            ("refused", "refused"),
        ],
        strict=True,
    ):
        assert name in line
        assert reason in line
    assert not (tmp_path / "f").exists()


def test_the_password_in_an_address_is_sent_but_not_told(server, tmp_path, caplog):
    caplog.set_level("INFO")
    server.add("busy", fail=[503] * 3)
    addresses = [server.url(name).replace("//", "//me:secret@") for name in ("gone", "busy")]
    with pytest.raises(UserError) as caught:
        QUICK.fetch(file_at(*addresses, "http://me:secret@[x/"), tmp_path / "f")
    assert "Authorization" in server.asked[0][1]
    assert "404 Not Found" in str(caught.value)
    assert "trying again" in caplog.text
    assert "secret" not in str(caught.value) + caplog.text


def test_google_drive_is_asked_by_id(tmp_path, monkeypatch):
    asked = []

    def drive(id, output, quiet):
        asked.append(id)
        Path(output).write_bytes(CONTENT if id == "right" else b"quota page")

    monkeypatch.setattr("gdown.download", drive)
    QUICK.fetch(file_at("gdrive:quota", "gdrive:right"), tmp_path / "f")
    assert asked == ["quota", "right"]
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionError(), "ConnectionError"), (OSError("quota\nseen by whom"), "quota")],
)
def test_a_failure_of_google_drive_is_one_line(tmp_path, monkeypatch, error, reason):
    def fail(**options):
        raise error

    monkeypatch.setattr("gdown.download", fail)
    with pytest.raises(UserError, match=f"gdrive:x: {reason}$"):
        QUICK.fetch(file_at("gdrive:x"), tmp_path / "f")


def test_a_full_disk_is_said_before_the_transfer(server, tmp_path, monkeypatch):
    server.add("a", CONTENT)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"archive\.zip needs 0\.0 GB, but only 0\.0 GB are free"):
        QUICK.fetch(file_at(server.url("a"), size=False), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_disk_that_fills_up_is_named_and_the_transfer_kept(server, tmp_path, small_files):
    server.add("a", CONTENT)
    with pytest.raises(UserError, match=r"f\.part: cannot be written: File too large"):
        QUICK.fetch(file_at(server.url("a"), server.url("a")), tmp_path / "f")
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:1_000_000]


def test_check_file_names_what_differs(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    # `git hash-object` of a file with the line "hello", and its md5sum.
    blob, md5 = "ce013625030ba8dba906f756967f9e9ca394464a", "b1946ac92492d2347c6235b4d2611184"
    check_file(path, RemoteFile("f", 6, f"git-blob-sha1:{blob}", ()))
    check_file(path, RemoteFile("f", None, f"md5:{md5}", ()))
    assert digest(path, "git-blob-sha1") == blob
    with pytest.raises(UserError, match="f: 6 bytes instead of 7"):
        check_file(path, RemoteFile("f", 7, None, ()))
    with pytest.raises(UserError, match=f"md5 {md5} instead of {'0' * 32}"):
        check_file(path, RemoteFile("f", 6, f"md5:{'0' * 32}", ()))
