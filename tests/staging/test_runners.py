"""The stager over TCP as a launch runs it, all of its nodes on this machine; and who goes on where another broke down."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from aegis.errors import AegisError, SiteError
from aegis.staging.events import Done, NodeResult, Progress
from aegis.staging.over_tcp import OverTcp
from aegis.staging.runners import OneThenAnother
from aegis.staging.scan import scan
from aegis.staging.stage import stage
from aegis.staging.tcp import Launcher, Stager, node_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item

HOSTS = ("a", "b")
SRUN = """#!/bin/sh
# as srun does it where a node is gone: a step that names it ends on all nodes
case "$*" in *=gone\\ *) echo 'srun: error: Unable to create step: no such node' >&2; exit 1;; esac
case "$*" in *--nodes=1\\ *) ;; *) echo 'srun: error: Application launch failed: it is gone' >&2; exit 1;; esac
for word; do shift; case $word in -*) ;; srun) ;; *) set -- "$word" "$@"; break;; esac; done
exec "$@"
"""


def over_tcp(folder: Path, python: str = sys.executable, path: str = "/usr/bin:/bin") -> OverTcp:
    return OverTcp(
        shared=folder / "a shared $(x)",
        launcher=Launcher(kind="local"),
        address="127.0.0.1",
        python=python,
        environ={"PATH": path},
    )


@pytest.fixture
def item(tmp_path: Path) -> Item:
    source = tmp_path / "it's a source"
    source.mkdir()
    (source / "weights").write_bytes(bytes(9_000_000))
    return scan(str(source), str(tmp_path / "to" / "there"))


def left_in(stager: OverTcp) -> list[Path]:
    return list(stager.shared.iterdir())


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_any_python_of_the_nodes_stages(tmp_path: Path, item: Item, version: str) -> None:
    found = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))
    if not found:
        pytest.skip(f"no Python {version} here")
    stager = over_tcp(tmp_path, str(found[0]))
    results = stage([item], HOSTS, stager, lambda _: None)
    assert [each.ok for each in results.nodes] == [True, True]
    assert (Path(item.destination) / "weights").stat().st_size == 9_000_000
    assert not stage([item], HOSTS, stager, lambda _: None, "verify").failed
    assert not stage([item], ("a",), stager, lambda _: None, "clean").failed
    assert not Path(item.destination).exists()
    assert left_in(stager) == []


def test_who_listens_can_end_it_while_nothing_happens(tmp_path: Path, item: Item) -> None:
    python = tmp_path / "python"  # its nodes never come
    python.write_text(f'#!/bin/sh\n[ "$3" = head ] || exec sleep 60\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    stager = over_tcp(tmp_path, str(python))
    heard: list[Event] = []

    def enough(event: Event) -> None:
        heard.append(event)
        raise AegisError("enough")

    began = time.monotonic()
    with pytest.raises(AegisError, match="enough"):
        stage([item], HOSTS, stager, enough)
    assert time.monotonic() - began < 10
    assert [type(event) for event in heard] == [Progress]
    assert left_in(stager) == []


@pytest.mark.parametrize("body", ["kill -9 $$", "echo words >&2; exit 1", "exit 0"])
def test_a_head_that_ends_before_all_is_decided_is_an_error(tmp_path: Path, item: Item, body: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    stager = over_tcp(tmp_path, str(python))
    with pytest.raises(AegisError, match=r"the stager's head ended with (-9|1: words|0)$"):
        stage([item], HOSTS, stager, lambda _: None)
    assert left_in(stager) == []


def test_a_node_that_cannot_be_started_on_is_told_at_once(tmp_path: Path, item: Item) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        '#!/bin/sh\nfor last; do :; done\ncase "$*" in *"-- gone "*) echo no route >&2; exit 255;; esac\nexec sh -c "$last"\n'
    )
    ssh.chmod(0o755)
    stager = structs.replace(
        over_tcp(tmp_path, path=f"{ssh.parent}:/usr/bin:/bin"), launcher=Launcher(kind="ssh")
    )
    began = time.monotonic()
    results = stage([item], ("a", "gone"), stager, lambda _: None)
    assert time.monotonic() - began < 10
    assert {each.host: each.error for each in results.nodes} == {
        "a": None,
        "gone": "ssh ended with 255: no route",
    }


def test_a_step_that_one_node_ends_is_done_again_with_one_for_each(tmp_path: Path, item: Item) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    stager = structs.replace(
        over_tcp(tmp_path, path=f"{srun.parent}:/usr/bin:/bin"), launcher=Launcher(kind="srun")
    )
    told: list[Event] = []
    results = stage([item], ("a", "gone", "b"), stager, told.append)
    assert [each.ok for each in results.nodes] == [True, False, True]
    assert results.failed[0].error == "srun ended with 1: srun: error: Unable to create step: no such node"
    assert len([event for event in told if isinstance(event, NodeResult)]) == 3
    assert left_in(stager) == []


def test_one_srun_for_each_node_names_it() -> None:
    stager = Stager(archive=Path("/run/stager.pyz"), secret_file=Path("/run/secret"))
    launcher = Launcher(kind="srun", words=("--network=no_vni",), one_each=True)
    commands = node_commands(stager, launcher, HOSTS, "10.0.0.1:5", Path("/run/nodes"))
    assert [command[:5] for command in commands] == [
        ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", f"--nodelist={host}"] for host in HOSTS
    ]
    assert [command[-2:] for command in commands] == [["--node", host] for host in HOSTS]


class Scripted:
    """A stager that tells what it is given."""

    def __init__(self, *events: Event | Exception) -> None:
        self.events = events
        self.asked: list[tuple[list[Item], list[str]]] = []

    def run(
        self, items: Sequence[Item], hosts: Sequence[str], action: str, tell: Callable[[Event], None]
    ) -> None:
        del action
        self.asked.append((list(items), list(hosts)))
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            tell(event)


def test_another_does_what_one_has_left_and_is_told_of_under_the_same_numbers(item: Item) -> None:
    small = structs.replace(item, destination="/small", hosts=("a",))
    first = Scripted(
        NodeResult(item=0, host="a", ok=True),
        NodeResult(item=1, host="b", ok=False, error="full"),
        SiteError("a rank died"),
    )
    second = Scripted(NodeResult(item=0, host="a", ok=True), Done(seconds=1))
    said: list[str] = []
    told: list[Event] = []
    results = stage([small, item], HOSTS, OneThenAnother(first, second, said.append), told.append)
    assert second.asked == [([structs.replace(item, hosts=("a",))], ["a"])]
    assert {(each.item, each.host): each.ok for each in results.nodes} == {
        (0, "a"): True,
        (1, "a"): True,
        (1, "b"): False,
    }
    assert said == ["a rank died; going on in another way"]
