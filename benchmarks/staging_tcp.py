"""Staging over TCP: one head and 1, 3 and 7 nodes, each in a network namespace behind a link of 1 Gbit/s and 1 ms.

All links lead to one bridge. Both ends of each are limited by `tc`, so that no node sends or gets more than a link carries.
The delay needs the kernel's netem; where that is missing it is left out, and said so. Needs root, iproute2 and room in
/dev/shm for the bytes times (nodes + 1). Namespaces and files are removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.staging.archive import stager_archive
from aegis.staging.events import Done, Listening, NodeResult, read_event
from aegis.staging.listing import Directory, File, Item, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVERS = tuple(int(n) for n in os.environ.get("AEGIS_BENCH_RECEIVERS", "1,3,7").split(","))
ROUNDS = int(os.environ.get("AEGIS_BENCH_ROUNDS", "3"))
FILE_BYTES, FILES = 192 << 20, 4
LINK = 125e6  # bytes/s: 1 Gbit/s, headers of Ethernet, IP and TCP included
DELAY_MS = 1.0
LIMIT = 0.85  # of the link rate
PORT = 7799
NAME = f"aegis-{os.getpid()}"


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def has_netem() -> bool:
    """Tell whether this kernel can delay packets."""
    delay = ["netem", "delay", "1ms"]
    tried = subprocess.run(
        ["tc", "-n", f"{NAME}-sw", "qdisc", "add", "dev", "bridge", "root", *delay],
        capture_output=True,
        check=False,
    )
    if tried.returncode == 0:
        subprocess.run(["tc", "-n", f"{NAME}-sw", "qdisc", "del", "dev", "bridge", "root"], check=True)
    return tried.returncode == 0


def limit(namespace: str, device: str, delay_ms: float) -> None:
    """Limit what a device sends, and delay it."""
    tc = ["tc", "-n", namespace, "qdisc", "add", "dev", device]
    rate = ["tbf", "rate", "1gbit", "burst", "256k", "latency", "20ms"]
    subprocess.run([*tc, "root", "handle", "1:", *rate], check=True)
    if delay_ms:
        netem = ["netem", "delay", f"{delay_ms}ms", "limit", "10000"]
        subprocess.run([*tc, "parent", "1:1", "handle", "10:", *netem], check=True)


@contextlib.contextmanager
def network(count: int) -> Iterator[bool]:
    """Make the switch and so many namespaces; yield whether links have a delay."""
    names = [f"{NAME}-sw", *(f"{NAME}-{n}" for n in range(count))]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "bridge", "type", "bridge")
        ip("-n", names[0], "link", "set", "bridge", "up")
        delayed = has_netem()
        for n, name in enumerate(names[1:]):
            ip(
                "-n",
                names[0],
                "link",
                "add",
                f"port{n}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            )
            ip("-n", names[0], "link", "set", f"port{n}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            limit(names[0], f"port{n}", 0)
            limit(name, "eth0", DELAY_MS if delayed else 0)
        yield delayed
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def make_source(folder: Path) -> Item:
    """Write files that cannot be compressed, and return what is staged."""
    source = folder / "source"
    source.mkdir()
    files = []
    for n in range(FILES):
        path = source / f"weights-{n}"
        with path.open("wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(os.urandom(1 << 20))
        found = path.stat()
        files.append(File(path.name, found.st_size, found.st_mtime_ns, 0o644, path.name))
    directories = (Directory(".", 0o755),)
    return Item(
        source=str(source), destination=str(folder / "staged"), directories=directories, files=tuple(files)
    )


def stage(folder: Path, receivers: int) -> float:
    """Stage once, and return the bytes per second that each node got.

    Raises:
        RuntimeError: a node does not have all.
    """
    secret = {**os.environ, "AEGIS_STAGE_SECRET": secrets.token_hex(16)}

    def start(n: int, *argv: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", str(folder / "stager.pyz"), *argv, "--interface", "eth0"]
        inside = ["ip", "netns", "exec", f"{NAME}-{n}", *command]
        return subprocess.Popen(inside, env=secret, stdout=subprocess.PIPE)

    names = [f"node{n}" for n in range(1, receivers + 1)]
    processes = [start(0, "head", str(folder / "list"), "--nodes", ",".join(names), "--port", str(PORT))]
    assert processes[0].stdout
    try:
        first = read_event(processes[0].stdout.readline())
        assert isinstance(first, Listening)
        for n, name in enumerate(names, 1):
            head = f"{first.address}:{first.port}"
            processes.append(start(n, "receive", "--head", head, "--node", name, "--suffix", f".{n}"))
        events = [read_event(line) for line in processes[0].stdout]
        failed = [event for event in events if isinstance(event, NodeResult) and not event.ok]
        if processes[0].wait() or failed:
            raise RuntimeError(str(failed))
        (done,) = (event for event in events if isinstance(event, Done))
        return FILE_BYTES * FILES / done.seconds
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        for n in range(1, receivers + 1):
            shutil.rmtree(folder / f"staged.{n}", ignore_errors=True)
            shutil.rmtree(folder / f"staged.{n}.aegis-part", ignore_errors=True)


def main() -> None:
    if os.geteuid() != 0 or not shutil.which("tc"):
        print("skipped: network namespaces need root, and tc")
        return
    folder = Path(tempfile.mkdtemp(prefix="aegis-bench-", dir="/dev/shm"))
    missed = []
    try:
        (folder / "stager.pyz").write_bytes(stager_archive())
        (folder / "list").write_bytes(encode([make_source(folder)]))
        with network(max(RECEIVERS) + 1) as delayed:
            delay = f"{DELAY_MS:g} ms delay" if delayed else "no delay (no netem in this kernel)"
            print(f"{FILES} files of {FILE_BYTES >> 20} MiB, links of 1 Gbit/s, {delay}, median of {ROUNDS}")
            print(f"{'receivers':>9}{'MB/s each':>11}{'of the link':>13}{'worst':>8}{'best':>8}")
            for receivers in RECEIVERS:
                rates = [stage(folder, receivers) / LINK for _ in range(ROUNDS)]
                share = statistics.median(rates)
                spread = f"{min(rates):8.2f}{max(rates):8.2f}"
                print(f"{receivers:>9}{share * LINK / 1e6:11.1f}{share:13.2f}{spread}", flush=True)
                if share < LIMIT:
                    missed.append(str(receivers))
    finally:
        shutil.rmtree(folder)
    print(f"limit: {LIMIT:.2f} of the link; headers alone take 0.05")
    if missed:
        sys.exit(f"missed for {', '.join(missed)} receivers")


if __name__ == "__main__":
    main()
