"""The audit log: every record is kept and chained, and every tampering is found."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from wkhost.errors import PluginError
from wkhost.link.contract import Actor
from wkhost.plugin_host.audit import NO_HASH, AuditLog, Event, files, record_hash, verify
from wkhost.plugin_host.auditor import MAX_KINDS, OTHER, Auditor

WHO = Actor("operator", 1000, 42)


def fill(folder: Path, count: int = 5) -> AuditLog:
    log = AuditLog(folder)
    log.append([Event(WHO, "install", f"p{number}", {"n": number}) for number in range(count)])
    return log


def lines(folder: Path) -> list[bytes]:
    return (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)


def rewrite(folder: Path, new: list[bytes]) -> None:
    (folder / "audit.jsonl").write_bytes(b"".join(new))


def test_a_record_names_who_what_and_the_record_before(tmp_path: Path) -> None:
    log = fill(tmp_path, 2)
    first, second = log.read()
    assert (first["role"], first["uid"], first["pid"]) == ("operator", 1000, 42)
    assert (first["seq"], first["action"], first["plugin"]) == (1, "install", "p0")
    assert first["prev"] == NO_HASH
    assert second["prev"] == first["hash"] == record_hash(first)
    found = verify(tmp_path)
    assert (found.problem, found.records, found.last_hash) == ("", 2, second["hash"])


def test_text_of_plugins_cannot_leave_its_line_or_move_a_cursor(tmp_path: Path) -> None:
    text = 'x\n{"seq":1}\r\x1b[2J\u202e\u2028"'
    AuditLog(tmp_path).append([Event(WHO, "denied", "p", {"what": text})])
    data = (tmp_path / "audit.jsonl").read_bytes()
    assert data.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in data[:-1])
    assert json.loads(data)["details"]["what"] == text


@pytest.mark.parametrize("at", range(5))
def test_a_changed_line_is_found(tmp_path: Path, at: int) -> None:
    fill(tmp_path)
    kept = lines(tmp_path)
    kept[at] = kept[at].replace(b'"uid":1000', b'"uid":1001')
    rewrite(tmp_path, kept)
    assert f"audit.jsonl line {at + 1} was changed" in verify(tmp_path).problem


@pytest.mark.parametrize("at", range(5))
def test_a_removed_line_is_found_first_and_last_too(tmp_path: Path, at: int) -> None:
    fill(tmp_path)
    kept = lines(tmp_path)
    del kept[at]
    rewrite(tmp_path, kept)
    assert verify(tmp_path).problem


@pytest.mark.parametrize("at", range(6))
def test_an_inserted_line_is_found_even_with_a_good_hash(tmp_path: Path, at: int) -> None:
    fill(tmp_path)
    kept = lines(tmp_path)
    forged = json.loads(kept[min(at, 4)])
    forged["action"] = "nothing"
    forged["hash"] = record_hash(forged)
    text = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    rewrite(tmp_path, [*kept[:at], text, *kept[at:]])
    assert verify(tmp_path).problem


def test_a_chain_that_was_made_anew_does_not_fit_its_head(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    AuditLog(tmp_path / "b").append([Event(WHO, "other", f"p{n}") for n in range(5)])
    (tmp_path / "a" / "audit.jsonl").write_bytes((tmp_path / "b" / "audit.jsonl").read_bytes())
    assert "head" in verify(tmp_path / "a").problem


def test_swapped_lines_and_garbage_are_found(tmp_path: Path) -> None:
    fill(tmp_path)
    kept = lines(tmp_path)
    rewrite(tmp_path, [kept[1], kept[0], *kept[2:]])
    assert verify(tmp_path).problem
    rewrite(tmp_path, [*kept[:2], b"garbage\n", *kept[2:]])
    assert "line 3 is no audit record" in verify(tmp_path).problem


def test_the_log_is_bounded_and_its_chain_goes_on_over_files(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_file_bytes=2000, max_files=3)
    for number in range(100):
        log.append([Event(WHO, "reload", "p", {"n": number})])
    kept = list(files(tmp_path))
    assert len(kept) == 4
    assert all(path.stat().st_size < 3000 for path in kept)
    found = verify(tmp_path)
    assert found.problem == ""
    assert found.last_seq == 100
    assert 1 < found.first_seq < 100 == found.records + found.first_seq - 1
    assert log.read(3)[-1]["details"] == {"n": 99}
    kept[0].unlink()
    assert verify(tmp_path).problem


def test_a_removed_file_in_the_middle_is_found(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_file_bytes=2000, max_files=5)
    for number in range(60):
        log.append([Event(WHO, "reload", "p", {"n": number})])
    list(files(tmp_path))[2].unlink()
    assert "removed or inserted" in verify(tmp_path).problem


def test_another_log_of_the_same_folder_continues_the_chain(tmp_path: Path) -> None:
    one, other = AuditLog(tmp_path), AuditLog(tmp_path)
    for number in range(4):
        (one if number % 2 else other).append([Event(WHO, "a", str(number))])
    assert verify(tmp_path).problem == ""
    assert [record["plugin"] for record in one.read()] == ["0", "1", "2", "3"]


def _append_many(folder: str) -> None:
    log = AuditLog(Path(folder))
    for number in range(25):
        log.append([Event(WHO, "a", str(number))])


def test_two_processes_append_in_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    found = verify(tmp_path)
    assert (found.problem, found.records) == ("", 50)


def test_a_torn_last_line_is_cut_and_told(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq":4,"ti')
    assert "is no audit record" in verify(tmp_path).problem
    AuditLog(tmp_path).append([Event(WHO, "enable", "p")])
    assert verify(tmp_path).problem == ""
    repaired, last = AuditLog(tmp_path).read()[-2:]
    assert (repaired["action"], repaired["details"]) == ("audit_repaired", {"bytes_cut": 12})
    assert last["action"] == "enable"


def test_a_log_that_is_ahead_of_its_head_is_whole(tmp_path: Path) -> None:
    """A crash between the record and the head leaves that; nothing was tampered with."""
    fill(tmp_path, 3)
    head = (tmp_path / "head.json").read_bytes()
    fill(tmp_path, 1)
    (tmp_path / "head.json").write_bytes(head)
    assert verify(tmp_path).problem == ""


def test_a_damaged_end_is_not_built_upon(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    rewrite(tmp_path, [*lines(tmp_path), b"{}\n"])
    with pytest.raises(PluginError, match="no audit record"):
        AuditLog(tmp_path).append([Event(WHO, "enable", "p")])


def test_large_details_are_left_out_with_their_size(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append([Event(WHO, "install", "p", {"x": "y" * 10_000})])
    assert log.read()[0]["details"] == {"omitted": "too large", "bytes": 10_008}


async def test_repeated_denials_make_one_record_with_their_count(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    auditor = Auditor(AuditLog(tmp_path), interval_s=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(auditor.run)
        for _ in range(10_000):
            auditor.deny("p", "grant_denied", "capabilities.kv_bytes")
        auditor.deny("q", "grant_denied", "capabilities.kv_bytes")
        await trio.sleep(11)
        auditor.note("impostor", "p", pid=7)
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    found = auditor.log.read()
    assert [(r["plugin"], r["action"], r["details"].get("count")) for r in found] == [
        ("p", "grant_denied", 10_000),
        ("q", "grant_denied", 1),
        ("p", "impostor", None),
    ]
    assert found[0]["role"] == "server"


async def test_a_plugin_that_varies_its_denials_is_bounded(tmp_path: Path) -> None:
    auditor = Auditor(AuditLog(tmp_path), interval_s=3600)
    async with trio.open_nursery() as nursery:
        await nursery.start(auditor.run)
        for number in range(1000):
            auditor.deny("p", "egress_denied", f"host-{number}")
        nursery.cancel_scope.cancel()
    found = auditor.log.read()
    assert len(found) == MAX_KINDS + 1
    assert found[-1]["details"]["what"] == OTHER
    assert sum(record["details"]["count"] for record in found) == 1000


async def test_what_was_noted_is_written_at_the_end(tmp_path: Path) -> None:
    auditor = Auditor(AuditLog(tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(auditor.run)
        auditor.note("sandbox_off", "p")
        nursery.cancel_scope.cancel()
    assert [record["action"] for record in auditor.log.read()] == ["sandbox_off"]


async def test_a_log_that_cannot_be_written_is_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    auditor = Auditor(AuditLog(tmp_path / "file" / "audit"))
    async with trio.open_nursery() as nursery:
        await nursery.start(auditor.run)
        auditor.note("x")
        nursery.cancel_scope.cancel()
    assert auditor.lost == 1
    with pytest.raises(OSError, match="Not a directory"):
        await auditor.record(Event(WHO, "install", "p"))


def test_a_disk_that_fills_leaves_a_chain_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fill(tmp_path, 2)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
        with pytest.raises(OSError, match="No space left"):
            log.append([Event(WHO, "enable", "p")])
    log.append([Event(WHO, "disable", "p")])
    found = verify(tmp_path)
    assert (found.problem, found.records) == ("", 4)
    assert [record["action"] for record in log.read()][-2:] == ["audit_repaired", "disable"]
