"""Unpacking: the rules, and archives that mean harm."""

import io
import os
import tarfile
import zipfile

import pytest

from blocklora.data import unpack as module
from blocklora.data.unpack import unpack
from blocklora.errors import UserError


def tar_of(members, mode="w"):
    """Return a tar of (name, content) pairs; content may be a TarInfo instead of bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zip_of(members):
    """Return a zip of (name, content) pairs; the name may be a ZipInfo."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


PACKERS = {
    "tar": tar_of,
    "tar.gz": lambda members: tar_of(members, "w:gz"),
    "tar.bz2": lambda members: tar_of(members, "w:bz2"),
    "tar.xz": lambda members: tar_of(members, "w:xz"),
    "zip": zip_of,
}


@pytest.fixture(params=PACKERS)
def pack(request, tmp_path):
    def write(members):
        path = tmp_path / f"archive.{request.param}"
        path.write_bytes(PACKERS[request.param](members))
        return path

    return write


def test_members_that_the_rules_name_are_the_only_ones_unpacked(pack, tmp_path):
    archive = pack(
        [
            ("./top/images/a/1.jpg", b"1"),
            ("top/images/b c/\u00fc.jpg", b"2"),
            ("top/images2/3.jpg", b"3"),
            ("top/lists/x.txt", b"4"),
            ("other/images/5.jpg", b"5"),
        ]
    )
    unpack(archive, tmp_path / "out", {"top/images": "pictures", "top/lists/x.txt": "y.txt"})
    assert files(tmp_path / "out") == {
        "pictures/a/1.jpg": b"1",
        "pictures/b c/\u00fc.jpg": b"2",
        "y.txt": b"4",
    }


def test_a_folder_is_found_at_any_depth(pack, tmp_path):
    archive = pack(
        [("x/y/images/a/images/1.jpg", b"1"), ("images/2.jpg", b"2"), ("imagesx/3", b"")]
    )
    unpack(archive, tmp_path / "out", {"**/images": "."})
    assert files(tmp_path / "out") == {"a/images/1.jpg": b"1", "2.jpg": b"2"}


def test_nested_archives_follow_rules_of_their_own(pack, tmp_path):
    inner = {name: tar_of([("1.JPEG", name.encode())]) for name in ("n01.tar", "n02.tar")}
    archive = pack([*inner.items(), ("readme.txt", b"")])
    unpack(archive, tmp_path / "out", {"*.tar": {"": "train/{archive}"}})
    assert files(tmp_path / "out") == {
        "train/n01/1.JPEG": b"n01.tar",
        "train/n02/1.JPEG": b"n02.tar",
    }


def test_a_compressed_tar_in_an_archive_is_unpacked(pack, tmp_path):
    inner = PACKERS["tar.gz"]([("101_ObjectCategories/Faces/1.jpg", b"1"), ("x", b"")])
    archive = pack([("caltech-101/101.tar.gz", inner), ("__MACOSX/._x", b"")])
    rules = {"caltech-101/101.tar.gz": {"101_ObjectCategories": "101_ObjectCategories"}}
    unpack(archive, tmp_path / "out", rules)
    assert files(tmp_path / "out") == {"101_ObjectCategories/Faces/1.jpg": b"1"}


def test_an_archive_without_what_a_rule_names_is_not_the_expected_one(pack, tmp_path):
    with pytest.raises(UserError, match="has nothing at 'images'"):
        unpack(pack([("jpg/1.jpg", b"1")]), tmp_path / "out", {"images": "."})


@pytest.mark.parametrize(
    "name",
    [
        "/etc/evil",
        "../evil",
        "images/../../evil",
        "images/a\\..\\..\\evil",
        "images/../../out2/evil",
    ],
)
def test_members_that_lead_out_of_the_folder_are_refused(pack, tmp_path, name):
    archive = pack([("images/1.jpg", b"1"), (name, b"evil")])
    with pytest.raises(UserError, match=r"refused: .* leads out of the folder"):
        unpack(archive, tmp_path / "deep" / "out", {"": "."})
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("evil")]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../x"),
        (tarfile.SYMTYPE, "1.jpg"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, target):
    info = tarfile.TarInfo("images/link")
    info.type, info.linkname = kind, target
    (tmp_path / "a.tar").write_bytes(tar_of([("images/1.jpg", b"1"), ("", info)]))
    with pytest.raises(UserError, match="refused: 'images/link' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "out", {"images": "."})
    assert files(tmp_path / "out") == {"1.jpg": b"1"}


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("images/link")
    info.external_attr = 0o120777 << 16
    (tmp_path / "a.zip").write_bytes(zip_of([(info, "/etc/passwd")]))
    with pytest.raises(UserError, match="is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"": "."})


def test_a_file_that_is_there_twice_is_refused(pack, tmp_path):
    archive = pack([("images/1.jpg", b"1"), ("images/./1.jpg", b"2")])
    with pytest.raises(UserError, match="twice"):
        unpack(archive, tmp_path / "out", {"images": "."})
    assert files(tmp_path / "out") == {"1.jpg": b"1"}


@pytest.mark.parametrize("selected", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_a_bomb_of_zeros_is_refused_before_it_fills_the_disk(tmp_path, suffix, nested, selected):
    zeros = bytes(150_000_000)
    content = PACKERS[suffix]([("images/1.jpg" if selected else "x", zeros), ("images/2.jpg", b"")])
    rules = {"images": "."}
    if nested:
        content, rules = PACKERS["tar.gz"]([("inner", content)]), {"inner": rules}
    (tmp_path / "bomb").write_bytes(content)
    assert len(content) < 1_000_000
    if nested and suffix == "zip":
        with pytest.raises(UserError, match="not a whole zip or tar archive"):
            unpack(tmp_path / "bomb", tmp_path / "out", rules)
        return
    with pytest.raises(UserError, match="refused: it grows to more than 10 times its size"):
        unpack(tmp_path / "bomb", tmp_path / "out", rules)
    assert sum(map(len, files(tmp_path / "out").values())) < 80_000_000


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    content = bytearray(zip_of([("1.jpg", bytes(5000))]))
    directory = content.index(b"PK\x01\x02")
    for place in (22, directory + 24):  # uncompressed size in both headers
        content[place : place + 4] = (100).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="not a whole zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"": "."})


def test_too_many_members_are_refused(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAXIMUM_MEMBERS", 3)
    with pytest.raises(UserError, match="more than 3 members"):
        unpack(pack([(f"{i}.jpg", b"") for i in range(5)]), tmp_path / "out", {"": "."})


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_huge_tar_header_is_not_read_into_memory(tmp_path, kind):
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, 2**32
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    with pytest.raises(UserError, match="a header of 4294967296 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out", {"": "."})


@pytest.mark.parametrize("keep", [0, 0.3, 0.65])
def test_a_truncated_archive_is_refused(pack, tmp_path, keep):
    archive = pack([(f"{i}.jpg", os.urandom(3000)) for i in range(20)])
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"not a whole zip or tar archive|has nothing at"):
        unpack(archive, tmp_path / "out", {"": "."})


def test_something_else_is_not_an_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>quota exceeded</html>" * 100)
    with pytest.raises(UserError, match="not a whole zip or tar archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"": "."})


def test_modes_of_an_archive_are_ignored(tmp_path):
    info = tarfile.TarInfo("1.jpg")
    info.mode = 0o6777
    (tmp_path / "a.tar").write_bytes(tar_of([("", info)]))
    unpack(tmp_path / "a.tar", tmp_path / "out", {"": "."})
    assert (tmp_path / "out/1.jpg").stat().st_mode & 0o7111 == 0
