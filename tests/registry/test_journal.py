from __future__ import annotations

import errno
import os
import signal
import stat
from typing import TYPE_CHECKING, Any

import pytest

from aegis.registry.journal import Journal, compact, replay

from .conftest import DEADLINE, Process, push, report, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aegis.registry.store import Store


def write(path: Path, *batches: list[Any]) -> None:
    journal = Journal(path)
    for batch in batches:
        journal.append(batch)
    journal.close()


def known(path: Path) -> dict[str, str]:
    return {change.service.service_id: change.service.status for change in replay(path)}


def test_replay_tells_the_last_state(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "$(x) ;'\n.jsonl"
    write(
        path,
        store.apply(push("n", report("a\n"), report("b"))),
        store.apply(push("n", report("a\n", status="draining"))),
    )
    assert known(path) == {"a\n": "draining"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_torn_last_line_costs_only_itself(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    write(path, store.apply(push("n", report("a"), report("b"))))
    path.write_bytes(path.read_bytes()[:-20])
    assert known(path) == {"a": "healthy"}
    assert "1 unreadable" in caplog.text
    write(path, store.apply(push("n", report("a"), report("b"), report("c"))))
    assert known(path) == {"a": "healthy", "c": "healthy"}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", b"[]\n{}\n", b"x" * 1000])
def test_no_content_breaks_a_replay(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert replay(path) == []


def test_a_journal_that_is_absent_or_a_directory_counts_as_empty(tmp_path: Path) -> None:
    assert replay(tmp_path / "none") == []
    assert replay(tmp_path) == []
    compact(tmp_path / "no" / "such" / "directory", [])


def test_compaction_keeps_what_lives(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "journal"
    for status in ("starting", "healthy", "draining"):
        write(path, store.apply(push("n", report("a", status=status))))
    compact(path, replay(path))
    assert len(path.read_bytes().splitlines()) == 1
    assert known(path) == {"a": "draining"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_once_and_survived(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    real, full = os.write, [True]

    def write_half(descriptor: int, data: bytes) -> int:
        if not full[0]:
            return real(descriptor, data)
        real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write_half)
    journal = Journal(path)
    journal.append(store.apply(push("n", report("a"))))
    journal.append(store.apply(push("n", report("a"), report("b"))))
    wait_until(lambda: journal._queue.empty() and path.exists() and path.stat().st_size)
    journal.close()
    assert caplog.text.count("No space left") == 1
    full[0] = False
    write(path, store.apply(push("n", report("a"), report("b"), report("c"))))
    assert known(path) == {"c": "healthy"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110 - a device
def test_a_registry_serves_on_a_full_disk(start: Callable[..., Process], tmp_path: Path) -> None:
    path = tmp_path / "journal"
    registry = start("--journal", str(path))
    path.unlink()
    path.symlink_to("/dev/full")
    for status in ("starting", "healthy"):
        registry.client.push(push("n", report("a", status=status)))
    assert registry.client.get("a").status == "healthy"
    wait_until(lambda: "No space left" in registry.errors)
    assert registry.end() == 0
    assert registry.errors.count("cannot be written") == 1


def test_a_killed_registry_knows_its_services_when_it_is_back(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    first = start("--journal", str(path))
    first.client.push(push("n", report("a", model="m"), report("b")))
    first.client.push(push("n", report("a", model="m")))
    revision = first.client.watch().revision
    wait_until(lambda: known(path).keys() == {"a"})
    first.kill()

    second = start("--journal", str(path), "--stale-after", "2", "--remove-after", "4")
    assert second.client.get("a").metadata == {"model": "m"}
    assert second.client.count() == 1
    assert second.client.watch(revision, 60).reset
    wait_until(lambda: second.client.get("a").status == "unhealthy")
    wait_until(lambda: second.client.count() == 0)
    wait_until(lambda: known(path) == {})


def test_agents_that_announce_again_keep_their_services(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    first = start("--journal", str(path))
    first.client.push(push("n", report("a")))
    assert first.end(signal.SIGINT) == 0  # a graceful end writes the last lines
    second = start("--journal", str(path))
    second.client.push(push("n", report("a")))
    assert [service.service_id for service in second.client.healthy()] == ["a"]
    assert second.end() == 0
    assert second.process.wait(DEADLINE) == 0
