"""Downloads against a server on this machine that truncates, stalls, lies and refuses: the file is whole and right, or not there."""
import hashlib
import json
import os
import random
import socket

import pytest

from data_scripts import fetch as F
from tests.data_scripts import server as S

CONTENT = b"PK\x03\x04" + random.Random(0).randbytes(300_000)
RIGHT = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def get(folder, *urls, digest=RIGHT, lines=None, **options):
    source = F.Source(name="data.zip", urls=urls, digest=digest, **{k: options.pop(k) for k in ("size", "first", "advice") if k in options})
    options = {"timeout": 0.3, "pause": 0.01, "tries": 3, **options}
    return F.fetch(source, folder, say=(lines if lines is not None else []).append, **options)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- faults that are overcome -----------------------------------------------------------------------------------------------------------

OVERCOME = {
    "nothing": S.whole,
    "truncated once": S.truncates(1000, times=1),
    "truncated often, each answer brings a little": S.truncates(120_000),
    "stalled": S.stalls(5000),
    "trickling": S.trickles,
    "500 twice": S.answers(500, times=2),
    "503 with Retry-After": S.answers(503, times=1, Retry_After=0),
    "range ignored": S.ignores_ranges,
    "range shifted": S.shifts_ranges,
    "no length announced": S.has_no_length,
    "more announced than there is": S.announces(400_000),
    "wrong bytes once": S.sends(b"PK\x03\x04" + b"wrong" * 60_000, times=1),
}


@pytest.mark.parametrize("fault", OVERCOME)
def test_a_fault_that_passes_ends_in_the_right_file(tmp_path, fault):
    with S.running(CONTENT, file=OVERCOME[fault]) as (server, address):
        path = get(tmp_path, f"{address}/file")
    assert path.read_bytes() == CONTENT and leftovers(tmp_path) == ["data.zip"]


def test_a_cut_download_is_continued_not_repeated(tmp_path):
    with S.running(CONTENT, file=S.truncates(1000, times=1)) as (server, address):
        get(tmp_path, f"{address}/file")
        assert server.asked["/file"] == [None, "bytes=1000-"]


def test_a_killed_download_is_continued_by_the_next_command(tmp_path):
    with S.running(CONTENT, file=S.truncates(1000)) as (server, address):
        with pytest.raises(F.FetchProblem, match=r"failed 1 times in a row.*ended after 1,000 of 300,004 bytes.*1,000 bytes are kept"):
            get(tmp_path, f"{address}/file", tries=1)
        assert leftovers(tmp_path) == [".data.zip.part", ".data.zip.part.json"]
        server.faults["/file"] = S.whole
        lines = []
        assert get(tmp_path, f"{address}/file", lines=lines).read_bytes() == CONTENT
        assert server.asked["/file"] == [None, "bytes=1000-"] and leftovers(tmp_path) == ["data.zip"]
        assert lines[-1].endswith(f"300,004 bytes, sha256 {RIGHT[7:]} is right")


def test_a_file_replaced_on_the_server_is_not_glued_together(tmp_path):
    second = CONTENT[:4] + bytes(200_000)
    with S.running(CONTENT, file=S.changes) as (server, address):
        server.second = second
        assert get(tmp_path, f"{address}/file", digest="").read_bytes() == second


def test_without_checksum_another_address_starts_over(tmp_path):
    with S.running(CONTENT, one=S.truncates(1000), two=S.whole) as (server, address):
        lines = []
        get(tmp_path, f"{address}/one", f"{address}/two", digest="", tries=1, lines=lines)
        assert server.asked == {"/one": [None], "/two": [None]}
        assert f"no published checksum to compare; sha256 {RIGHT[7:]}" in lines[-1]


def test_with_checksum_another_address_continues(tmp_path):
    with S.running(CONTENT, one=S.truncates(1000), two=S.whole) as (server, address):
        assert get(tmp_path, f"{address}/one", f"{address}/two", tries=1).read_bytes() == CONTENT
        assert server.asked == {"/one": [None], "/two": ["bytes=1000-"]}


def test_the_last_byte_already_there(tmp_path):
    (tmp_path / ".data.zip.part").write_bytes(CONTENT)  # killed between the last byte and the rename
    with S.running(CONTENT) as (server, address):
        assert get(tmp_path, f"{address}/file").read_bytes() == CONTENT
        assert server.asked["/file"] == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_starts_over(tmp_path):
    (tmp_path / ".data.zip.part").write_bytes(CONTENT + b"more")
    with S.running(CONTENT) as (_, address):
        assert get(tmp_path, f"{address}/file").read_bytes() == CONTENT


def test_the_next_address_serves_what_the_first_refuses(tmp_path):
    with S.running(CONTENT, gone=S.answers(404), page=S.sends(b"<!DOCTYPE html><p>log in"), other=S.whole) as (server, address):
        lines = []
        path = get(tmp_path, *(f"{address}/{p}" for p in ("gone", "page", "other")), first=F.ZIP, lines=lines)
        assert path.read_bytes() == CONTENT and len(server.asked["/gone"]) == len(server.asked["/page"]) == 1
        assert any("/gone answers 404 Not Found" in line for line in lines) and any("a web page and not the file" in line for line in lines)


# ---- faults that stay: one sentence, nothing half done ----------------------------------------------------------------------------------

LASTING = {
    "404": (S.answers(404), {}, "answers 404 Not Found"),
    "500": (S.answers(500), {}, "failed 3 times in a row, at last: .* answers 500"),
    "always truncated at the same byte": (lambda h, n: S.sends(CONTENT[:100])(h, n) if not h.start() else S.answers(500)(h, n), {"size": 300_004},
                                          "offers 100 bytes, expected 300,004"),
    "announces more than it has": (S.announces(400_000), {"digest": ""}, "ended after 300,004 of 400,000 bytes"),
    "announces less than it has": (S.announces(1000), {}, "gives a file that has sha256 "),
    "wrong bytes": (S.sends(b"PK\x03\x04" + bytes(300_000)), {}, "gives a file that has sha256 .*, expected "),
    "wrong bytes, size known": (S.sends(bytes(10)), {"size": 300_004}, "offers 10 bytes, expected 300,004"),
    "an empty file": (S.sends(b""), {"digest": ""}, "gives a file that is empty"),
    "a web page": (S.sends(b"<html>log in</html>"), {"first": F.ZIP}, "begins with b'<html>log in</ht', which is a web page and not the file"),
    "silence": (S.stalls(0, times=9), {"timeout": 0.1}, "failed 3 times in a row, at last: no byte for 0.1 s"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_stays_is_one_sentence_and_leaves_no_file(tmp_path, fault):
    behaviour, options, sentence = LASTING[fault]
    with S.running(CONTENT, file=behaviour) as (_, address):
        with pytest.raises(F.FetchProblem, match=sentence) as caught:
            get(tmp_path, f"{address}/file", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "data.zip").exists()


def test_nobody_listens(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(F.FetchProblem, match="cannot be reached .*refused"):
            get(tmp_path, f"http://127.0.0.1:{unused.getsockname()[1]}/file")
    assert leftovers(tmp_path) == []


def test_a_wrong_file_that_is_there_is_reported_and_kept(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"mine")
    with S.running(CONTENT) as (server, address):
        with pytest.raises(F.FetchProblem, match="has sha256 .* it was left as it is: move it away"):
            get(tmp_path, f"{address}/file")
        assert server.asked == {} and (tmp_path / "data.zip").read_bytes() == b"mine"


def test_a_right_file_that_is_there_asks_nobody(tmp_path):
    (tmp_path / "data.zip").write_bytes(CONTENT)
    with S.running(CONTENT) as (server, address):
        assert get(tmp_path, f"{address}/file") == tmp_path / "data.zip" and server.asked == {}


def test_verify_only_downloads_nothing(tmp_path):
    with S.running(CONTENT) as (server, address):
        with pytest.raises(F.FetchProblem, match="data.zip does not exist"):
            get(tmp_path, f"{address}/file", verify_only=True)
        assert server.asked == {} and leftovers(tmp_path) == []


def test_a_file_to_be_fetched_by_hand_says_how(tmp_path):
    with pytest.raises(F.FetchProblem, match="does not exist; register at example.org"):
        get(tmp_path, advice="register at example.org")


def test_two_processes_do_not_write_one_file(tmp_path):
    with F.Part(tmp_path / "data.zip"), S.running(CONTENT) as (_, address):
        with pytest.raises(F.FetchProblem, match="being fetched by another process"):
            get(tmp_path, f"{address}/file")


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(F.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000}))
    with S.running(CONTENT) as (_, address):
        with pytest.raises(F.FetchProblem, match="300,004 bytes are still to come and .* has 1,000 free"):
            get(tmp_path, f"{address}/file")


def test_a_disk_that_fills_up_keeps_what_arrived(tmp_path, monkeypatch):
    def full(part, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(F.Part, "write", full)
    with S.running(CONTENT) as (_, address):
        with pytest.raises(F.FetchProblem, match="the disk of .* is full"):
            get(tmp_path, f"{address}/file")
    assert not (tmp_path / "data.zip").exists()


# ---- checks -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["sha256:" + RIGHT[7:15], "md5:" + hashlib.md5(CONTENT).hexdigest(), "sha1:" + hashlib.sha1(CONTENT).hexdigest()])
def test_first_digits_and_other_kinds_of_checksum(tmp_path, digest):
    with S.running(CONTENT) as (_, address):
        lines = []
        get(tmp_path, f"{address}/file", digest=digest, lines=lines)
        assert "is right" in lines[-1]
    (tmp_path / "data.zip").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(F.FetchProblem, match="expected"):
        get(tmp_path, digest=digest)


def test_the_note_of_a_part_names_its_source(tmp_path):
    with S.running(CONTENT, file=S.truncates(10)) as (_, address):
        with pytest.raises(F.FetchProblem):
            get(tmp_path, f"{address}/file", tries=1)
        assert json.loads((tmp_path / ".data.zip.part.json").read_text()) == {"url": f"{address}/file", "mark": '"first"'}
