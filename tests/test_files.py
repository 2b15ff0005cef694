"""Files are whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from aegis.files import PRIVATE, SHARED, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_text_arrives_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, "é\r\n\udcff\0")
    assert file.read_bytes() == "é\r\n".encode() + b"\xff\0"


@pytest.mark.parametrize(("mode", "expected"), [(PRIVATE, 0o600), (SHARED, 0o644), (0o755, 0o755)])
def test_modes(tmp_path: Path, mode: int, expected: int) -> None:
    before = os.umask(0o022)
    try:
        file = tmp_path / "f"
        file.touch(0o666)
        write_atomically(file, "x", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == expected


def test_readers_see_the_old_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "f"
    size, rounds = 200_000, 60
    write_atomically(file, "0" * size)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            text = file.read_text()
            assert len(text) == size
            seen.update(set(text) if len(set(text)) > 1 else {"whole"})

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(rounds):
        write_atomically(file, str(number % 10) * size)
    done.set()
    for reader in readers:
        reader.join()
    assert seen == {"whole"}
    assert names(tmp_path) == ["f"]


def _write_many(file: Path, letter: str) -> None:
    for _ in range(20):
        write_atomically(file, letter * 5000)


def test_several_writers_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "f"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(file, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert file.read_text() in {"a" * 5000, "b" * 5000}
    assert names(tmp_path) == ["f"]


FULL = """
import resource, signal, sys
from pathlib import Path
from aegis.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), "y" * 100_000)
except OSError as error:
    print(error.strerror)
"""


def test_a_file_that_may_not_grow_keeps_its_old_content(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "File too large\n"
    assert file.read_text() == "old"
    assert names(tmp_path) == ["f"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 64 KiB, in a mount namespace of its own, where this user may have one."""
    script = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    probe = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), "true"]
    try:
        if subprocess.run(probe, capture_output=True, check=False, timeout=10).returncode:
            pytest.skip("no mount namespaces for this user")
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    return tmp_path


ENOSPC = """
import os, sys
from pathlib import Path
from aegis.files import write_atomically
file = Path(sys.argv[1]) / "f"
write_atomically(file, "old")
try:
    write_atomically(file, "y" * 100_000)
except OSError as error:
    print(error.strerror, file.read_text(), os.listdir(file.parent))
"""


def test_a_full_disk_keeps_the_old_content(small_disk: Path) -> None:
    script = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(small_disk), sys.executable, "-c", ENOSPC]
    done = subprocess.run([*command, str(small_disk)], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "No space left on device old ['f']\n"


@pytest.mark.parametrize("name", ["missing/f", "folder", "x" * 300])
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - any of them
        write_atomically(tmp_path / name, "x")
    assert names(tmp_path) == ["folder"]
