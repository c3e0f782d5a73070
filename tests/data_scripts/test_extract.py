"""Hostile and damaged archives: refused as a whole, nothing outside the folder, no half folder."""
import io
import stat
import tarfile
import zipfile

import pytest

from data_scripts import extract as E


def tar(path, *entries, mode="w"):
    """entries: (name, bytes) or (name, type, link target)."""
    with tarfile.open(path, mode) as archive:
        for name, *what in entries:
            info = tarfile.TarInfo(name)
            if isinstance(what[0], bytes) and len(what) == 1 and not what[0] in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                info.size = len(what[0])
                archive.addfile(info, io.BytesIO(what[0]))
            else:
                info.type = what[0]
                info.linkname = what[1] if len(what) > 1 else ""
                archive.addfile(info)
    return path


def zipped(path, *entries):
    """entries: (name, bytes) or (name, bytes, unix mode)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (mode[0] if mode else 0o644) << 16
            archive.writestr(info, content)
    return path


def run(path, folder, **options):
    lines = []
    E.extract(path, folder, say=lines.append, **{"most_bytes": 10_000, **options})
    return lines


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("make", [lambda p: tar(p, ("a/b.txt", b"one"), ("a", tarfile.DIRTYPE), ("c.txt", b""), mode="w:gz"),
                                  lambda p: zipped(p, ("a/", b""), ("a/b.txt", b"one"), ("c.txt", b""))], ids=["tar.gz", "zip"])
def test_a_good_archive(tmp_path, make):
    run(make(tmp_path / "x"), tmp_path / "out")
    assert files_of(tmp_path / "out") == {"a/b.txt": b"one", "c.txt": b""}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x"]


def test_permissions_are_not_taken_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("run.sh")
        info.mode, info.size = 0o4777, 2
        archive.addfile(info, io.BytesIO(b"hi"))
    run(path, tmp_path / "out")
    assert not (tmp_path / "out/run.sh").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


HOSTILE = {
    "parent folder": (("../evil.txt", b"x"), "outside its folder"),
    "parent folder inside": (("a/../../evil.txt", b"x"), "outside its folder"),
    "absolute": (("/tmp/evil.txt", b"x"), "outside its folder"),
    "drive letter": (("C:/evil.txt", b"x"), "outside its folder"),
    "backslashes": (("..\\evil.txt", b"x"), "outside its folder"),
}


@pytest.mark.parametrize("kind", [tar, zipped])
@pytest.mark.parametrize("case", HOSTILE)
def test_paths_that_escape_are_refused(tmp_path, kind, case):
    entry, sentence = HOSTILE[case]
    path = kind(tmp_path / "x", ("good.txt", b"fine"), entry)
    with pytest.raises(E.ArchiveProblem, match=sentence):
        run(path, tmp_path / "below" / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["below", "x"]


@pytest.mark.parametrize("entry,sentence", [
    (("l", tarfile.SYMTYPE, "/etc/passwd"), "a link 'l' to '/etc/passwd', outside"),
    (("a/l", tarfile.SYMTYPE, "../../secret"), "outside its folder"),
    (("l", tarfile.LNKTYPE, "../secret"), "outside its folder"),
    (("pipe", tarfile.FIFOTYPE), "a device or pipe"),
    (("device", tarfile.CHRTYPE), "a device or pipe"),
], ids=["absolute link", "link up", "hard link up", "pipe", "device"])
def test_links_out_and_devices_are_refused(tmp_path, entry, sentence):
    with pytest.raises(E.ArchiveProblem, match=sentence):
        run(tar(tmp_path / "x.tar", ("good.txt", b"fine"), entry), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_a_zip_link_out_is_refused(tmp_path):
    with pytest.raises(E.ArchiveProblem, match="a link 'l' to '../secret'"):
        run(zipped(tmp_path / "x.zip", ("l", b"../secret", stat.S_IFLNK | 0o777)), tmp_path / "out")


def test_links_inside_are_left_out_and_said(tmp_path):
    path = tar(tmp_path / "x.tar", ("a.txt", b"one"), ("b.txt", tarfile.SYMTYPE, "a.txt"), ("b.txt/c", b"through the link"))
    lines = run(path, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"a.txt": b"one", "b.txt/c": b"through the link"} and "1 links left out" in lines[0]
    assert not (tmp_path / "out/b.txt").is_symlink()


@pytest.mark.parametrize("kind", [tar, zipped])
def test_too_much_is_refused_before_it_is_written(tmp_path, kind):
    path = kind(tmp_path / "x", ("a", bytes(6000)), ("b", bytes(6000)))
    with pytest.raises(E.ArchiveProblem, match="more than 10,000 bytes"):
        run(path, tmp_path / "out")
    with pytest.raises(E.ArchiveProblem, match="more than 1 members"):
        run(path, tmp_path / "out", most_files=1, most_bytes=10**6)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", ("a", bytes(100_000)))
    raw = path.read_bytes()
    path.write_bytes(raw.replace((100_000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    with pytest.raises(E.ArchiveProblem):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_twice_the_same_name_is_refused(tmp_path):
    with pytest.raises(E.ArchiveProblem, match="'A.txt' twice"):
        run(tar(tmp_path / "x.tar", ("a.txt", b"1"), ("A.txt", b"2")), tmp_path / "out")
    with pytest.raises(E.ArchiveProblem, match="'a/b' below a member that is a file"):
        run(tar(tmp_path / "y.tar", ("a", b"1"), ("a/b", b"2")), tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "empty"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_damaged_archives_are_sentences_and_leave_no_folder(tmp_path, kind, damage):
    path = tmp_path / f"x.{kind}"
    entries = [(f"{i}.bin", bytes(range(256)) * 40) for i in range(4)]
    zipped(path, *entries) if kind == "zip" else tar(path, *entries, mode="w:gz" if kind == "tar.gz" else "w")
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        if kind == "tar":
            raw[10:20] = b"\xff" * 10  # in the first header; a plain tar has no checksum over contents
        else:
            raw[len(raw) // 3] ^= 0xFF
    path.write_bytes({"cut": raw[:len(raw) // 2], "flipped": raw, "no archive": b"<html>", "empty": b""}[damage])
    with pytest.raises(E.ArchiveProblem) as caught:
        run(path, tmp_path / "out", most_bytes=10**6)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_keep_chooses_and_renames(tmp_path):
    path = tar(tmp_path / "x.tar", ("top/a.txt", b"1"), ("top/b.bin", b"2"))
    run(path, tmp_path / "out", keep=lambda n: n.removeprefix("top/") if n.endswith(".txt") else None)
    assert files_of(tmp_path / "out") == {"a.txt": b"1"}
    with pytest.raises(E.ArchiveProblem, match="none of the files"):
        run(path, tmp_path / "other", keep=lambda n: None)


def test_an_existing_folder_is_left_alone_and_a_failed_finish_leaves_none(tmp_path):
    path = tar(tmp_path / "x.tar", ("a.txt", b"1"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(E.ArchiveProblem, match="exists already"):
        run(path, tmp_path / "mine")

    def fails(part):
        raise ValueError("conversion failed")

    with pytest.raises(ValueError):
        run(path, tmp_path / "out", finish=fails)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "x.tar"]


def test_a_killed_unpacking_is_cleared_away(tmp_path):
    (tmp_path / ".out.unpacking" / "old").mkdir(parents=True)
    run(tar(tmp_path / "x.tar", ("a.txt", b"1")), tmp_path / "out")
    assert files_of(tmp_path / "out") == {"a.txt": b"1"}
