"""The stager end to end: four nodes on this machine, in good days and bad ones."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.staging.listing import BLOCK
from aegis.staging.node.places import remove

from .tcp_site import Run, Site, item_of, tree, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.lab

NODES = ("a", "b", "c", "d")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site in memory, where there is one: these tests move a few hundred MB."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm)) if os.access(shm, os.W_OK) else tmp_path
    made = Site(folder)
    try:
        yield made
    finally:
        made.close()
        remove(os.fsencode(folder))  # folders that nobody may write are among them


def fill_with_large(site: Site, blocks: int = 30) -> None:
    """Put in files of some blocks together, no two of them equal."""
    seed = os.urandom(BLOCK + blocks)
    site.write("large", b"".join(seed[n : n + BLOCK] for n in range(blocks - 2)))
    site.write("other", b"".join(seed[n : n + BLOCK] for n in range(2)) + b"x")


def stopped_in_the_middle(site: Site, run: Run, node: str) -> None:
    """Stop the head when a node has noted some blocks, but by far not all."""
    until(lambda: site.blocks(node) >= 3, f"blocks at {node}")
    run.head.send_signal(signal.SIGSTOP)
    assert not run.results()


def test_every_kind_of_file_arrives_at_every_node(site: Site) -> None:
    sizes = {"empty": 0, "one": 1, "block": BLOCK, "more": BLOCK + 1, "frame": 1 << 20, "odd": 3_333_333}
    for name, size in sizes.items():
        site.write(f"sizes/{name}", os.urandom(size))
    for path in (b"a b/c\nd", b"$(touch x);'\"\\", b"\xff\xfe/\x80", "ünï".encode(), b"-rf", b"C", b"F"):
        site.write(b"names/" + path, path)
    for n in range(1500):
        site.write(f"many/{n}", b"%d" % n * (n % 700))
    (site.source / "nothing" / "in it").mkdir(parents=True)
    (site.source / "closed").mkdir()
    site.write("closed/file", b"c")
    (site.source / "sizes" / "one").chmod(0o440)
    (site.source / "closed").chmod(0o500)
    (site.source / "link").symlink_to("sizes/odd")
    os.utime(site.source / "sizes" / "more", ns=(1, 1_234_567_890_123_456_789))
    run = site.run(NODES).join()
    assert run.end() == 0
    assert all(result.ok and not result.skipped for result in run.results().values())
    expected = tree(site.source)
    for node in NODES:
        assert tree(site.at(node)) == expected
        assert not site.part(node).exists()
    assert run.done.bytes_read == site.item().size


def test_a_second_run_moves_nothing(site: Site) -> None:
    site.write("weights", os.urandom(100_000))
    assert site.run(NODES).join().end() == 0
    again = site.run(NODES).join()
    assert again.end() == 0
    assert all(result.ok and result.skipped for result in again.results().values())
    assert again.done.bytes_read == 0


def test_a_changed_source_replaces_what_was_staged(site: Site) -> None:
    site.write("weights", b"old" * 1000)
    site.write("gone", b"soon")
    assert site.run(NODES[:2]).join().end() == 0
    (site.source / "gone").unlink()
    site.write("weights", b"new" * 1001)
    assert site.run(NODES[:2]).join().end() == 0
    for node in NODES[:2]:
        assert tree(site.at(node)) == tree(site.source)
        assert not [path for path in site.destination.parent.iterdir() if "aegis-old" in path.name]


def test_a_single_file_and_a_tree_for_some_nodes_only(site: Site) -> None:
    site.write("image.sif", os.urandom(2 * BLOCK + 5))
    site.write("tree/file", b"t")
    image = item_of(site.source / "image.sif", site.folder / "local" / "image.sif")
    some = item_of(site.source / "tree", site.destination, hosts=["b", "d.example.org"])
    for expected in (False, True):
        run = Run(site, [some, image], NODES).join()
        assert run.end() == 0
        assert {host: r.skipped for host, r in run.results(0).items()} == {"b": expected, "d": expected}
        assert {host: r.skipped for host, r in run.results(1).items()} == dict.fromkeys(NODES, expected)
    for node in NODES:
        copied = site.folder / "local" / f"image.sif.{node}"
        assert copied.read_bytes() == (site.source / "image.sif").read_bytes()
        assert site.at(node).exists() == (node in "bd")


def test_a_node_killed_in_the_middle_is_dropped_and_the_others_finish(site: Site) -> None:
    fill_with_large(site)
    run = site.run(NODES).join()
    stopped_in_the_middle(site, run, "b")
    run.receivers["b"].kill()
    run.receivers["b"].wait()
    run.head.send_signal(signal.SIGCONT)
    assert run.end() == 1
    results = run.results()
    assert {host: result.ok for host, result in results.items()} == {
        "a": True,
        "b": False,
        "c": True,
        "d": True,
    }
    assert "ended" in (results["b"].error or "")
    for node in "acd":
        assert tree(site.at(node)) == tree(site.source)
    assert not site.at("b").exists()
    assert run.done.bytes_read < 1.5 * site.item().size  # the stream went on


@pytest.mark.parametrize("node", ["a", "d"])
def test_the_first_and_the_last_node_may_be_killed(site: Site, node: str) -> None:
    fill_with_large(site)
    run = site.run(NODES).join()
    stopped_in_the_middle(site, run, "d")
    run.receivers[node].kill()
    run.head.send_signal(signal.SIGCONT)
    assert run.end() == 1
    assert {host for host, result in run.results().items() if result.ok} == set(NODES) - {node}


def test_a_node_that_hangs_is_dropped(site: Site) -> None:
    fill_with_large(site)
    run = site.run(NODES, "--stall-seconds", "3").join()
    stopped_in_the_middle(site, run, "c")
    run.receivers["c"].send_signal(signal.SIGSTOP)
    run.head.send_signal(signal.SIGCONT)
    assert run.head.wait(60) == 1
    run.receivers["c"].kill()
    assert run.end() == 1
    assert {host for host, result in run.results().items() if result.ok} == set(NODES) - {"c"}


def test_a_killed_head_ends_all_and_the_next_run_brings_what_is_missing(site: Site) -> None:
    fill_with_large(site)
    run = site.run(NODES).join()
    stopped_in_the_middle(site, run, "d")
    until(lambda: site.blocks("d") >= 3, "blocks at the last node")
    run.head.kill()
    assert run.end() == -signal.SIGKILL
    assert not any(site.at(node).exists() for node in NODES)
    had = {node: site.blocks(node) for node in NODES}
    again = site.run(NODES).join()
    assert again.end() == 0
    fewest = min(had.values())
    assert again.done.bytes_read <= site.item().size - (fewest - 1) * BLOCK
    for node in NODES:
        assert tree(site.at(node)) == tree(site.source)
        assert again.results()[node].bytes <= site.item().size - (had[node] - 1) * BLOCK


def test_what_an_earlier_run_left_is_hashed_before_it_is_taken_over(site: Site) -> None:
    fill_with_large(site)
    run = site.run(["a"]).join()
    stopped_in_the_middle(site, run, "a")
    run.head.kill()
    run.end()
    noted = (site.part("a") / ".aegis-blocks").read_text().splitlines()[1].split()
    name = site.item().files[int(noted[0])].path
    with (site.part("a") / name).open("r+b") as file:
        file.seek(int(noted[1]) * BLOCK + 77)
        file.write(b"another")
    assert site.run(["a"]).join().end() == 0
    assert tree(site.at("a")) == tree(site.source)


def test_a_part_of_another_list_is_begun_anew(site: Site) -> None:
    site.write("weights", b"w" * 100)
    site.part("a").mkdir(parents=True)
    (site.part("a") / ".aegis-blocks").write_text("00000000 5\n0 0 00000000\n")
    (site.part("a") / "rubbish").write_text("r")
    assert site.run(["a"]).join().end() == 0
    assert tree(site.at("a")) == tree(site.source)


def test_two_stagings_of_the_same_destination_wait_for_each_other(site: Site) -> None:
    fill_with_large(site)
    first = site.run(["a", "b"]).join()
    stopped_in_the_middle(site, first, "a")
    second = site.run(["a", "b", "c"]).join()
    until(lambda: "c" in second.results(), "the node that nobody else stages on")
    assert set(second.results()) == {"c"}
    first.head.send_signal(signal.SIGCONT)
    assert first.end() == second.end() == 0
    assert {host: result.skipped for host, result in second.results().items()} == {
        "a": True,
        "b": True,
        "c": False,
    }


def test_the_lock_of_another_program_is_respected(site: Site) -> None:
    site.write("weights", b"w")
    site.destination.parent.mkdir()
    lock = site.at("a").with_name(site.at("a").name + ".aegis-lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = site.run(["a", "b"]).join()
        until(lambda: "b" in run.results(), "the other node")
        assert "a" not in run.results()
    assert run.end() == 0


def test_a_source_that_changed_is_published_nowhere(site: Site) -> None:
    site.write("a", b"a" * 50)
    site.write("weights", os.urandom(2 * BLOCK))
    item = site.item()
    os.truncate(site.source / "weights", BLOCK)
    run = Run(site, [item], NODES).join()
    assert run.end() == 1
    for node in NODES:
        assert "weights: changed while it was staged" in (run.results()[node].error or "")
        assert not site.at(node).exists()


@pytest.mark.parametrize("name", ["weights", "empty"])
def test_a_source_that_is_gone_is_an_error_of_that_item_only(site: Site, name: str) -> None:
    site.write("gone/weights", b"w")
    site.write("gone/empty", b"")
    site.write("there/file", b"f")
    lost = item_of(site.source / "gone", site.destination)
    there = item_of(site.source / "there", site.folder / "there")
    (site.source / "gone" / name).unlink()
    run = Run(site, [lost, there], NODES).join()
    assert run.end() == 1
    assert all(f"{name}: No such file" in (result.error or "") for result in run.results(0).values())
    assert all(result.ok for result in run.results(1).values())


def test_what_somebody_else_has_made_is_left_alone(site: Site) -> None:
    site.write("weights", b"w")
    site.at("b").mkdir(parents=True)
    (site.at("b") / "mine").write_text("m")
    run = site.run(NODES).join()
    assert run.end() == 1
    assert "exists and was not staged by aegis" in (run.results()["b"].error or "")
    assert {host for host, result in run.results().items() if result.ok} == set("acd")
    assert [path.name for path in site.at("b").iterdir()] == ["mine"]


def test_a_destination_that_cannot_be_written_is_an_error_of_that_node(site: Site) -> None:
    site.write("weights", b"w")
    site.at("c").parent.mkdir()
    site.part("c").with_name(site.at("c").name + ".aegis-lock").mkdir()
    run = site.run(NODES).join()
    assert run.end() == 1
    assert "model.c.aegis-lock: Is a directory" in (run.results()["c"].error or "")
    assert {host for host, result in run.results().items() if result.ok} == set("abd")


def mount(where: Path, options: str) -> None:
    where.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(where)], check=True)


def write_for_ever(path: Path) -> None:
    with path.open("wb", 0) as file:
        while True:
            file.write(bytes(1 << 20))


@AS_ROOT
def test_a_full_or_read_only_node_is_told_before_a_byte_moves(site: Site) -> None:
    fill_with_large(site, 8)
    small, closed = site.folder / "local.b", site.folder / "local.c"
    mount(small, "size=20m")
    mount(closed, "size=200m,ro")
    try:
        # suffixes end the name of the folder here
        item = item_of(site.source, site.folder / "local")
        run = Run(site, [item], NODES)
        run.join("a", "d")
        for node, where in (("b", small), ("c", closed)):
            argv = [
                "receive",
                "--head",
                f"127.0.0.1:{run.port}",
                "--node",
                node,
                "--suffix",
                f".{node}/model",
            ]
            run.receivers[node] = site.start(argv)
            assert where.is_mount()
        assert run.end() == 1
        assert "bytes more, but only" in (run.results()["b"].error or "")
        assert "Read-only file system" in (run.results()["c"].error or "")
        assert run.results()["a"].ok
        assert run.results()["d"].ok
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(small), str(closed)], check=True)


@AS_ROOT
def test_a_node_that_becomes_full_is_dropped_and_passes_on_what_it_gets(site: Site) -> None:
    for n in range(200):
        site.write(f"{n:04}", os.urandom(1 << 20))  # small enough to be made when they come
    small = site.folder / "local.b"
    mount(small, "size=300m")
    try:
        run = Run(site, [item_of(site.source, site.folder / "local")], NODES[:3])
        run.join("a", "c")
        argv = ["receive", "--head", f"127.0.0.1:{run.port}", "--node", "b", "--suffix", ".b/model"]
        run.receivers["b"] = site.start(argv)
        until(lambda: len(list(small.glob("model.aegis-part/0*"))) > 3, "files at b")
        run.head.send_signal(signal.SIGSTOP)
        with pytest.raises(OSError, match="No space left"):
            write_for_ever(small / "filler")
        run.head.send_signal(signal.SIGCONT)
        assert run.end() == 1
        assert "No space left on device" in (run.results()["b"].error or "")
        for node in "ac":
            assert tree(site.folder / f"local.{node}") == tree(site.source)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_verify_finds_a_flipped_byte(site: Site) -> None:
    site.write("weights", os.urandom(BLOCK + 100))
    site.write("other", b"o")
    assert site.run(NODES).join().end() == 0
    assert site.run(NODES, "--verify").join().end() == 0
    weights = site.at("c") / "weights"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(BLOCK + 7)
        byte = file.read(1)[0]
        file.seek(BLOCK + 7)
        file.write(bytes([byte ^ 4]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    (site.at("d") / "other").unlink()
    run = site.run(NODES, "--verify").join()
    assert run.end() == 1
    assert {host for host, result in run.results().items() if result.ok} == {"a", "b"}
    assert "weights: block 1 is not what was staged" in (run.results()["c"].error or "")
    assert "other: No such file" in (run.results()["d"].error or "")


def test_clean_removes_what_was_staged_and_nothing_else(site: Site) -> None:
    site.write("folder/weights", b"w")
    (site.source / "folder").chmod(0o500)
    assert site.run(["a"]).join().end() == 0
    site.at("b").mkdir()
    site.part("c").mkdir()
    run = site.run(NODES, "--clean").join()
    assert run.end() == 1
    assert {host for host, result in run.results().items() if result.ok} == {"a", "c", "d"}
    assert [path.name for path in site.destination.parent.iterdir()] == [site.at("b").name]


def test_a_node_that_never_comes_is_told_and_the_others_go_on(site: Site) -> None:
    site.write("weights", b"w")
    run = site.run(NODES, "--join-seconds", "2").join("a", "b", "d")
    assert run.end() == 1
    assert "did not come within 2 s" in (run.results()["c"].error or "")
    assert {host for host, result in run.results().items() if result.ok} == set("abd")


def test_strangers_do_no_harm(site: Site) -> None:
    site.write("weights", os.urandom(1000))
    run = site.run(["a", "b"])
    with (
        socket.create_connection(("127.0.0.1", run.port)) as silent,
        socket.create_connection(("127.0.0.1", run.port)) as loud,
    ):
        loud.sendall(b"AEGIS-STAGER 1\n" + b"x" * 4096)
        environ = {**os.environ, "AEGIS_STAGE_SECRET": "another secret, as long as it is"}
        argv = ["receive", "--head", f"127.0.0.1:{run.port}", "--node", "a"]
        wrong = subprocess.run(
            ["/usr/bin/env", "python3", "-I", str(site.archive), *argv],
            env=environ,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert wrong.returncode == 1
        assert b"does not know the secret" in wrong.stderr
        run.join()
        assert run.end() == 0
        silent.close()


def test_the_secret_comes_from_a_file_of_its_owner_only(site: Site) -> None:
    secret = site.folder / "secret"
    secret.write_text("another secret, as long as it is\n")
    secret.chmod(0o644)
    site.write("weights", b"w")
    argv = ["receive", "--head", "127.0.0.1:1", "--secret-file", str(secret)]
    process = site.start(argv)
    assert process.wait(60) == 2
    secret.chmod(0o600)
    run = Run(site, [site.item()], ["a"], "--secret-file", str(secret))
    run.join(options=("--secret-file", str(secret)))
    assert run.end() == 0


def test_a_broken_list_is_a_usage_error(site: Site) -> None:
    listing = site.folder / "list"
    for content in (b"", b"AEGIS-STAGE 1\0I\0/a", b"AEGIS-STAGE 1\0I\0/a\0/b\0F\0../x\x001\x001\x00644\0x\0"):
        listing.write_bytes(content)
        assert site.start(["head", str(listing), "--nodes", "a"]).wait(60) == 2


def test_progress_says_how_much_is_sent(site: Site) -> None:
    fill_with_large(site, 6)
    run = site.run(["a"]).join()
    until(lambda: site.blocks("a") >= 1, "a block")
    run.head.send_signal(signal.SIGSTOP)
    time.sleep(1.1)
    run.head.send_signal(signal.SIGCONT)
    assert run.end() == 0
    assert all(0 <= event.bytes <= event.total for event in run.progress)
