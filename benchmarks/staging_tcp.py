"""Staging over TCP: one head and 1, 3 and 7 nodes, each in a network namespace behind a link of 1 Gbit/s and 1 ms.

All links lead to one bridge. Both ends of each are limited by `tc`, so that no node sends or gets more than a link carries.
The delay is the kernel's netem; where that is missing, `staging_delay.c` holds packets back. Beside each figure stand what a
bare copy down the same chain comes to (nothing is read, hashed or written), and what the model of `aegis.staging.estimate`
gives. Needs root, iproute2 and room in /dev/shm for the bytes times (nodes + 1). All is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.staging.archive import stager_archive
from aegis.staging.estimate import Rates, estimate
from aegis.staging.events import Done, Listening, NodeResult, read_event
from aegis.staging.listing import Directory, File, Item, encode
from aegis.staging.node.frames import DATA_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVERS = tuple(int(n) for n in os.environ.get("AEGIS_BENCH_RECEIVERS", "1,3,7").split(","))
ROUNDS = int(os.environ.get("AEGIS_BENCH_ROUNDS", "5"))
FILE_BYTES, FILES = 192 << 20, 4
SMALL_BYTES = 8 << 20  # so few that most of the time is the way through the chain
LINK = 125e6  # bytes/s: 1 Gbit/s, headers of Ethernet, IP and TCP included
PAYLOAD = 1448 / 1514  # of a full packet, as tc counts it
DELAY_MS = 1.0
LIMIT = 0.85  # of the link rate
PORT = 7799
CONNECT_SECONDS = 10.0
NAME = f"aegis-{os.getpid()}"
SECRET = secrets.token_hex(16)
LARGE = (10_000, 400e9)  # nodes, bytes


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def inside(n: int, *command: str) -> subprocess.Popen[bytes]:
    """Start a command in a namespace."""
    secret = {**os.environ, "AEGIS_STAGE_SECRET": SECRET}
    words = ["ip", "netns", "exec", f"{NAME}-{n}", *command]
    return subprocess.Popen(words, env=secret, stdout=subprocess.PIPE)


# -- the network


def has_netem() -> bool:
    """Tell whether this kernel can delay packets."""
    tc = ["tc", "-n", f"{NAME}-sw", "qdisc"]
    tried = subprocess.run(
        [*tc, "add", "dev", "bridge", "root", "netem", "delay", "1ms"], capture_output=True, check=False
    )
    if tried.returncode == 0:
        subprocess.run([*tc, "del", "dev", "bridge", "root"], check=True)
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
def held_back(names: list[str]) -> Iterator[bool]:
    """Delay what comes in at these namespaces by our own program; yield whether it runs."""
    source = Path(__file__).with_name("staging_delay.c")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/delay"
        built = shutil.which("cc") and subprocess.run(["cc", "-O2", "-o", program, source], check=False)
        if not built or built.returncode:
            yield False
            return
        delay = subprocess.Popen([program, f"{DELAY_MS * 1000:.0f}", *names], stdout=subprocess.PIPE)
        assert delay.stdout
        try:
            yield delay.stdout.readline() == b"ready\n"
        finally:
            delay.kill()
            delay.wait()
            delay.stdout.close()


@contextlib.contextmanager
def network(count: int) -> Iterator[str]:
    """Make the switch and so many namespaces; yield what delays their links."""
    switch, *names = [f"{NAME}-sw", *(f"{NAME}-{n}" for n in range(count))]
    try:
        for name in (switch, *names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        netem = has_netem()
        for n, name in enumerate(names):
            peer = ["type", "veth", "peer", "name", "eth0", "netns", name]
            ip("-n", switch, "link", "add", f"port{n}", *peer)
            ip("-n", switch, "link", "set", f"port{n}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            limit(switch, f"port{n}", 0)
            limit(name, "eth0", DELAY_MS if netem else 0)
        if netem:
            yield f"{DELAY_MS:g} ms delay (netem)"
            return
        with held_back(names) as works:
            yield f"{DELAY_MS:g} ms delay (own program)" if works else "NO DELAY: neither netem nor our own"
    finally:
        for name in (switch, *names):
            ip("netns", "del", name, check=False)


# -- a bare copy down the same chain: what network and machine can do


def relay(next_address: str, size: int) -> None:
    """Take so many bytes and pass them on, or drop them where nobody follows; then say so backwards."""
    with socket.create_server(("", PORT)) as listening:
        following = connect(next_address) if next_address else None
        before, _ = listening.accept()
    buffer = memoryview(bytearray(DATA_LIMIT))
    while size:
        count = before.recv_into(buffer, 0, socket.MSG_WAITALL)
        size -= count
        if following:
            following.sendall(buffer[:count])
    if following:
        following.recv(1)
    before.sendall(b".")


def feed(next_address: str, size: int) -> None:
    """Send so many bytes, and print how many seconds it took until the last node had them."""
    following = connect(next_address)
    buffer, start = bytes(DATA_LIMIT), time.monotonic()
    for _ in range(size // DATA_LIMIT):
        following.sendall(buffer)
    following.recv(1)
    print(time.monotonic() - start)


def connect(address: str) -> socket.socket:
    """Connect to a program that may still be starting."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection((address, PORT))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def copy(receivers: int, size: int) -> float:
    """Return the seconds of a bare copy."""
    itself = [sys.executable, __file__]
    addresses = [f"10.77.0.{n + 2}" for n in range(receivers)]
    nodes = [
        inside(n, *itself, "relay", address, str(size)) for n, address in enumerate([*addresses[1:], ""], 1)
    ]
    head = inside(0, *itself, "feed", addresses[0], str(size))
    text, _ = head.communicate()
    for node in nodes:
        node.communicate()
    return float(text)


# -- staging


def make_source(folder: Path, name: str, files: int, size: int) -> Path:
    """Write files that cannot be compressed, and the list of what is staged; return the list."""
    source = folder / name
    source.mkdir()
    made = []
    for n in range(files):
        path = source / f"weights-{n}"
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        found = path.stat()
        made.append(File(path.name, found.st_size, found.st_mtime_ns, 0o644, path.name))
    item = Item(
        source=str(source),
        destination=str(folder / "staged"),
        directories=(Directory(".", 0o755),),
        files=tuple(made),
    )
    listing = folder / f"{name}.list"
    listing.write_bytes(encode([item]))
    return listing


def stage(listing: Path, receivers: int) -> float:
    """Stage once, and return the seconds until all nodes had all.

    Raises:
        RuntimeError: a node does not have all.
    """
    folder = listing.parent

    def start(n: int, *argv: str) -> subprocess.Popen[bytes]:
        return inside(n, sys.executable, "-I", str(folder / "stager.pyz"), *argv, "--interface", "eth0")

    names = [f"node{n}" for n in range(1, receivers + 1)]
    processes = [start(0, "head", str(listing), "--nodes", ",".join(names), "--port", str(PORT))]
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
        return done.seconds
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        for n in range(1, receivers + 1):
            shutil.rmtree(folder / f"staged.{n}", ignore_errors=True)
            shutil.rmtree(folder / f"staged.{n}.aegis-part", ignore_errors=True)


def busy() -> float:
    """Return the CPU seconds that this machine has worked."""
    times = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, *interrupts = map(int, times)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


# -- what comes out


def measure(listing: Path, rates: Rates) -> list[str]:
    """Print a line for each number of receivers; return those that miss the limit."""
    size, missed = FILE_BYTES * FILES, []
    print(f"{'receivers':>9}{'seconds':>9}{'of the link':>13}{'worst':>7}{'best':>7}", end="")
    print(f"{'bare copy':>11}{'model s':>9}{'measured / model':>18}{'CPU busy':>10}")
    for receivers in RECEIVERS:
        bare = statistics.median(copy(receivers, size) for _ in range(ROUNDS))
        seconds, work = [], 0.0
        for _ in range(ROUNDS):
            before, start = busy(), time.monotonic()
            seconds.append(stage(listing, receivers))
            work += (busy() - before) / (time.monotonic() - start) / (os.cpu_count() or 1) / ROUNDS
        median, model = statistics.median(seconds), estimate(size, FILES, receivers, rates).seconds
        shares = [size / each / LINK for each in (median, max(seconds), min(seconds), bare)]
        print(f"{receivers:>9}{median:9.2f}{shares[0]:13.2f}{shares[1]:7.2f}{shares[2]:7.2f}", end="")
        print(f"{shares[3]:11.2f}{model:9.2f}{median / model:18.2f}{work:10.0%}", flush=True)
        if shares[0] < LIMIT:
            missed.append(str(receivers))
    return missed


def hop(listing: Path) -> float:
    """Return by how many seconds each further node makes it longer, from few bytes."""
    few, many = min(RECEIVERS), max(RECEIVERS)
    times = [statistics.median(stage(listing, n) for _ in range(ROUNDS)) for n in (few, many)]
    return (times[1] - times[0]) / max(many - few, 1)


def extrapolate(rates: Rates, each: float) -> None:
    """Print what the model gives for very many nodes, with the hop that was measured."""
    nodes, size = LARGE
    usual = Rates()
    for name, links in ((f"{LINK * 8 / 1e9:g} Gbit/s", rates), (f"{usual.link / 1e9:g} GB/s", usual)):
        found = estimate(int(size), 100, nodes, links)
        parts = f"{found.flow:.0f} s flow by {found.slowest}, {found.fill:.1f} s fill"
        print(f"{nodes} nodes, {size / 1e9:.0f} GB, links of {name}: {found.seconds:.0f} s ({parts})")
    print(f"with the hop measured here the first has {nodes * each:.0f} s of fill")


def bench() -> None:
    folder = Path(tempfile.mkdtemp(prefix="aegis-bench-", dir="/dev/shm"))
    rates = Rates(link=LINK * PAYLOAD, latency=DELAY_MS / 1e3, frame=DATA_LIMIT, start=0.0)
    try:
        (folder / "stager.pyz").write_bytes(stager_archive())
        large = make_source(folder, "large", FILES, FILE_BYTES)
        small = make_source(folder, "small", 1, SMALL_BYTES)
        with network(max(RECEIVERS) + 1) as delay:
            what = f"{FILES} files of {FILE_BYTES >> 20} MiB"
            print(f"{what}, links of 1 Gbit/s, {delay}, median of {ROUNDS}, {os.cpu_count()} CPUs")
            missed = measure(large, rates)
            each, model = hop(small), rates.frame / rates.link + rates.latency
        print(f"a further node: {each * 1e3:.1f} ms, by the model {model * 1e3:.1f} ms")
        extrapolate(rates, each)
    finally:
        shutil.rmtree(folder)
    print(f"limit: {LIMIT:.2f} of the link; headers alone take {1 - PAYLOAD:.2f}")
    if missed:
        sys.exit(f"missed for {', '.join(missed)} receivers")


def main() -> None:
    if sys.argv[1:]:
        role, address, size = sys.argv[1:]
        (relay if role == "relay" else feed)(address, int(size))
    elif os.geteuid() != 0 or not shutil.which("tc"):
        print("skipped: network namespaces need root, and tc")
    else:
        bench()


if __name__ == "__main__":
    main()
