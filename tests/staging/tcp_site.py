"""Several nodes played on this machine: a head and a receiver each, every receiver with its own destinations."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from aegis.staging.archive import stager_archive
from aegis.staging.events import Done, Listening, NodeResult, Progress, read_event
from aegis.staging.listing import Directory, File, Item, Link, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aegis.staging.events import Event

SECONDS = 60.0  # for anything to happen: the machine may be busy
SECRET = "s3cret-of-32-characters-or-more-x"


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"waited {SECONDS:g} s for {what}"
        time.sleep(0.002)


def item_of(source: Path, destination: Path, hosts: Iterable[str] = ()) -> Item:
    """Return the item of a tree, or of a file."""
    if source.is_file():
        found = source.stat()
        only = File(".", found.st_size, found.st_mtime_ns, found.st_mode & 0o7777, ".")
        return Item(source=str(source), destination=str(destination), files=(only,), hosts=tuple(hosts))
    directories, files, links = [], [], []
    for path in [source, *sorted(source.rglob("*"))]:
        name = os.path.relpath(path, source)
        if path.is_symlink():
            links.append(Link(name, str(path.readlink())))
        elif path.is_dir():
            directories.append(Directory(name, path.stat().st_mode & 0o7777))
        else:
            found = path.stat()
            files.append(File(name, found.st_size, found.st_mtime_ns, found.st_mode & 0o7777, name))
    return Item(
        source=str(source),
        destination=str(destination),
        directories=tuple(directories),
        files=tuple(files),
        links=tuple(links),
        hosts=tuple(hosts),
    )


class Run:
    """One run of the head, with its events, and its receivers by name."""

    def __init__(self, site: Site, items: Iterable[Item], nodes: Iterable[str], *options: str) -> None:
        self.site = site
        self.names = list(nodes)
        site.runs += 1
        listing = site.folder / f"list.{site.runs}"
        listing.write_bytes(encode(items))
        argv = ["head", str(listing), "--nodes", ",".join(self.names), *options]
        self.head = site.start(argv, stdout=subprocess.PIPE)
        self.events: list[Event] = []
        self.receivers: dict[str, subprocess.Popen[bytes]] = {}
        assert self.head.stdout
        first = read_event(self.head.stdout.readline())
        assert isinstance(first, Listening)
        self.port = first.port
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def join(self, *names: str, options: tuple[str, ...] = ()) -> Run:
        """Start the receivers: of these nodes, or of all."""
        for name in names or self.names:
            argv = ["receive", "--head", f"127.0.0.1:{self.port}", "--node", name, "--suffix", f".{name}"]
            self.receivers[name] = self.site.start([*argv, *options])
        return self

    def end(self) -> int:
        """Wait for the head, and return its exit code."""
        code = self.head.wait(SECONDS)
        self._reading.join(SECONDS)
        for receiver in self.receivers.values():
            receiver.wait(SECONDS)
        return code

    def results(self, item: int = 0) -> dict[str, NodeResult]:
        return {e.host: e for e in self.events if isinstance(e, NodeResult) and e.item == item}

    @property
    def done(self) -> Done:
        (event,) = (e for e in self.events if isinstance(e, Done))
        return event

    @property
    def progress(self) -> list[Progress]:
        return [e for e in self.events if isinstance(e, Progress)]

    def _read(self) -> None:
        assert self.head.stdout
        for line in self.head.stdout:
            event = read_event(line)
            assert event is not None, line
            self.events.append(event)


class Site:
    """A folder with the stager, and what was started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.archive = folder / "stager.pyz"
        self.archive.write_bytes(stager_archive())
        self.source = folder / "source"
        self.source.mkdir()
        self.destination = folder / "node local" / "model"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, argv: list[str], stdout: int | None = None) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "AEGIS_STAGE_SECRET": SECRET}
        process = subprocess.Popen(
            [sys.executable, "-I", str(self.archive), *argv], env=environ, stdout=stdout
        )
        self.started.append(process)
        return process

    def write(self, name: str | bytes, content: bytes) -> None:
        path = self.source / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def at(self, node: str) -> Path:
        return self.destination.with_name(f"{self.destination.name}.{node}")

    def part(self, node: str) -> Path:
        return self.at(node).with_name(self.at(node).name + ".aegis-part")

    def blocks(self, node: str) -> int:
        """How many blocks a node has noted."""
        with contextlib.suppress(OSError):
            return (self.part(node) / ".aegis-blocks").read_bytes().count(b"\n") - 1
        return 0

    def item(self, hosts: Iterable[str] = ()) -> Item:
        return item_of(self.source, self.destination, hosts)

    def run(self, nodes: Iterable[str], *options: str) -> Run:
        return Run(self, [self.item()], nodes, *options)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is below a folder, with what shall be equal."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.lstat()
        if path.name == ".aegis-manifest":
            continue
        if path.is_symlink():
            what: tuple[object, ...] = ("link", path.readlink())
        elif path.is_dir():
            what = ("directory", state.st_mode)
        else:
            what = ("file", state.st_mode, state.st_mtime_ns, path.read_bytes())
        found[os.path.relpath(path, folder)] = what
    return found
