"""What a launch brings to its nodes: how agents see that it is there, and what the head hears of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.errors import SiteError
from aegis.fleet.agent.needs import is_here
from aegis.fleet.delivery import Delivery, delivery, need_of
from aegis.fleet.nodes import local_hosts
from aegis.fleet.order import Staged, Weights
from aegis.fleet.staging import Ground
from aegis.runs import RunDir
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Node, Platform
from aegis.staging.events import Done, NodeResult, Progress
from aegis.staging.listing import Item
from aegis.staging.local import clean_here, stage_here
from aegis.staging.plan import Plan
from aegis.staging.runners import OneThenAnother
from aegis.staging.scan import scan
from aegis.staging.want import Site, Want

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aegis.staging.events import Event

PATIENCE = 20.0


def seen(item: Item) -> bool:
    need: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(need_of(item)))
    return is_here(need)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_an_agent_sees_what_is_staged_when_it_is_whole_and_of_this_launch(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "it's $(x)"
    weights = source / "weights" if kind == "directory" else source
    if kind == "directory":
        source.mkdir()
    weights.write_text("one")
    item = scan(str(source), str(tmp_path / "to" / "there"))
    assert not seen(item)
    stage_here(item)
    assert seen(item)
    weights.write_text("a newer one")
    newer = scan(str(source), str(tmp_path / "to" / "there"))
    assert not seen(newer)  # what is there is of an older launch
    stage_here(newer)
    assert seen(newer)
    assert not seen(item)
    clean_here(newer)
    assert not seen(newer)


# ------------------------------------------------------------------------------------------- the thread


class Scripted:
    """A stager that tells what it is given; None: it waits until it may go on."""

    def __init__(self, *events: Event | Exception | None) -> None:
        self.events = events
        self.go = threading.Event()
        self.left = False

    def run(
        self, items: Sequence[Item], hosts: Sequence[str], action: str, tell: Callable[[Event], None]
    ) -> None:
        del items, hosts, action
        try:
            for event in self.events:
                if event is None:
                    assert self.go.wait(PATIENCE)
                elif isinstance(event, Exception):
                    raise event
                else:
                    tell(event)
        finally:
            self.left = True


def made(stager: Scripted, *hosts: str) -> Delivery:
    item = Item(source="/s", destination="/d", hosts=hosts)
    want = Want(kind="weights", name="m", source="/s", destination="/d", loaded="/d", hosts=hosts)
    plan = Plan(items=(item,), wants=(want,), hosts=hosts)
    return Delivery(plan, stager, (Weights("/d", local=True),), Staged())


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def moved(part: float) -> Progress:
    return Progress(item=0, bytes=int(100 * part), total=100, nodes_done=0, nodes=2, seconds=1.0)


def test_the_head_hears_how_far_it_is_who_lacks_something_and_when_it_is_over() -> None:
    lacks = NodeResult(item=0, host="b", ok=False, error="/d: no space")
    stager = Scripted(lacks, moved(0.5), None, NodeResult(item=0, host="a", ok=True), Done(seconds=1.0))
    found = made(stager, "a", "b")
    found.start()
    wait_until(lambda: found.failures() == [lacks])
    assert found.failures() == []
    assert found.status.startswith("staging ")
    assert found.ended is None
    stager.go.set()
    wait_until(lambda: found.ended is not None)
    assert found.status == ""
    first, *others = found.news()
    assert first.startswith("staged 0 B to 1 of 2 nodes in ")
    assert others == ["b: /d: no space"]
    assert found.manifest(0) == "/d/.aegis-manifest"


def test_when_a_stager_breaks_down_all_that_is_open_is_lost() -> None:
    stager = Scripted(NodeResult(item=0, host="a", ok=True), SiteError("srun is not on PATH"))
    found = made(stager, "a", "b", "c")
    found.start()
    wait_until(lambda: found.ended is not None)
    assert sorted((each.host, each.error) for each in found.failures()) == [
        ("b", "srun is not on PATH"),
        ("c", "srun is not on PATH"),
    ]


def test_a_launch_that_ends_takes_its_staging_along() -> None:
    stager = Scripted(None, moved(0.1))
    found = made(stager, "a")
    found.start()
    threading.Timer(0.05, stager.go.set).start()
    found.stop()
    assert stager.left
    assert found.failures() == []


def test_the_agents_go_ahead_where_staging_reaches_all_nodes_and_no_further(tmp_path: Path) -> None:
    run = RunDir.make(tmp_path / "m.1")
    for file in (run.agent, run.fleet):
        file.write_text("x")
    there = [NodeResult(item=0, host=host.name, ok=True) for host in local_hosts(2)]
    gone = NodeResult(item=0, host="local-1", ok=False, error="no route")
    for events, folder in ((there, True), ([there[0], gone], False), ([SiteError("no srun")], False)):
        plan = made(Scripted()).plan
        found = Delivery(plan, Scripted(*events), (), Staged(), "/nvme")
        assert bool(found.bring_agents(run, local_hosts(2))) == folder
        assert len(found.news()) == (not folder)
    unknown = Delivery(plan, Scripted(*there), (), Staged(), "$SLURM_TMPDIR")
    assert unknown.bring_agents(run, local_hosts(2)) is None


def test_agents_are_not_brought_by_what_ends_with_any_node_and_wait_no_longer_than_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.make(tmp_path / "m.1")
    for file in (run.agent, run.fleet):
        file.write_text("x")
    there = NodeResult(item=0, host="local", ok=True)
    over_mpi, over_tcp = Scripted(AssertionError("not asked")), Scripted(moved(0.1), there)
    both = OneThenAnother(over_mpi, over_tcp, lambda _: None)
    assert Delivery(made(over_tcp).plan, both, (), Staged(), "/nvme").bring_agents(run, local_hosts(1))
    monkeypatch.setattr("aegis.fleet.delivery.BRING_SECONDS", -1.0)
    late = Delivery(made(over_tcp).plan, both, (), Staged(), "/nvme")
    assert late.bring_agents(run, local_hosts(1)) is None
    assert late.news() == [f"agents start from {run.path}: they were not on all nodes in time"]


# ------------------------------------------------------------------------------------------- what is loaded


def weights_of(deployment: Deployment, tmp_path: Path, said: list[str] | None = None) -> Delivery:
    platform = Platform(name="here", scheduler="local", launcher="local", node=Node(devices=4))
    site = Site(local_path=str(tmp_path / "node"), work_dir=str(tmp_path), uid=1, home="/home")
    ground = Ground(platform, tuple(local_hosts(1)), (("local",),) * len(deployment.models), site, real=True)
    told = [] if said is None else said
    with delivery(deployment, ground, {"PATH": "/usr/bin:/bin"}, None, told.append) as found:
        found.start()
        wait_until(lambda: found.ended is not None)
        return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "shared" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_servers_load_from_their_node(tmp_path: Path, source: Path) -> None:
    home = tmp_path / "hf"
    models = (
        ModelEntry(model="org/m", model_source=str(source)),
        ModelEntry(model="org/hub"),
        ModelEntry(model="org/sim", engine="sim", model_source="/nowhere"),
    )
    deployment = Deployment(models=models, hf_home=str(home), log_dir=str(tmp_path / "logs"))
    said: list[str] = []
    found = weights_of(deployment, tmp_path, said)
    assert found.weights[0].path.startswith(f"{home}/aegis/m-")
    assert [each.local for each in found.weights] == [True, False, False]
    assert [len(needs) for needs in found.staged.needs] == [1, 0, 0]
    assert is_here(msgspec.to_builtins(found.staged.needs[0][0]))
    assert said[0] == "staging 2 B to 1 node (copy: one machine)"
    # later, with --skip-staging, what was left there is found again
    skipped = msgspec.structs.replace(deployment, skip_staging=True)
    assert weights_of(skipped, tmp_path).weights[0] == found.weights[0]
    none = msgspec.structs.replace(deployment, stager="none")
    assert weights_of(none, tmp_path).weights[0] == Weights(str(source), local=True)


def test_an_image_is_waited_for_by_all_that_run_in_it(tmp_path: Path) -> None:
    (tmp_path / "engine.sif").write_text("image")
    models = (ModelEntry(model="org/a"), ModelEntry(model="org/sim", engine="sim"))
    deployment = Deployment(models=models, image="engine.sif", hf_home=str(tmp_path / "hf"))
    found = weights_of(deployment, tmp_path)
    assert found.staged.image is not None
    assert found.staged.image.startswith(f"{tmp_path}/node/aegis-image-1/")
    assert [len(needs) for needs in found.staged.needs] == [1, 0]
