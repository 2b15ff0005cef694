"""What a site insists on, and what its queues take."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.preflight.limits import limits
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Platform, Queue
from aegis.spec.resolve import Resolved, resolve
from aegis.spec.walltime import format_walltime, parse_walltime

from .conftest import site

GIVEN = {"account": "science", "filesystems": "flare:home"}


def on(platform: str, nodes: int, **flags: Any) -> list[str]:
    flags = {"model": "org/m", "platform": platform, **flags}
    return [f"{'!' * each.certain}{each.problem}" for each in limits(resolve(None, flags, {}, site()), nodes)]


def on_aurora(nodes: int, walltime: str, queue: str | None = None) -> list[str]:
    return on("aurora", nodes, walltime=walltime, queue=queue, **GIVEN)


@pytest.mark.parametrize(("platform", "key"), [("aurora", "account"), ("frontier", "account")])
def test_a_key_that_the_site_insists_on(platform: str, key: str) -> None:
    assert on(platform, 1) == [
        f"!--{key}: {platform} takes no job without `{key}` (give --{key}, or `{key}:` in the deployment file)"
    ]


def test_every_missing_key_is_told() -> None:
    platform = Platform(name="site", scheduler="pbs", required=("account", "walltime", "filesystems"))
    found = limits(bare(platform), 1)
    assert [each.problem.where for each in found] == ["--account", "--walltime", "--filesystems"]
    assert all(each.certain for each in found)


def test_a_copy_is_for_one_machine() -> None:
    said = "!--stager: a copy is for one machine, and this job has 2 nodes"
    assert [each.partition(" (")[0] for each in on("aurora", 2, stager="copy", **GIVEN)] == [said]
    assert on("aurora", 1, stager="copy", **GIVEN) == []
    assert on("aurora", 2, stager="copy", skip_staging=True, **GIVEN) == []


@pytest.mark.parametrize("directive", ["-A science", "--account=science"])
def test_a_directive_gives_a_key_too(directive: str) -> None:
    assert on("frontier", 1, directives=[directive]) == []
    assert on("frontier", 1, directives=["--mail-type=END"]) != []


def test_no_scheduler_asks_for_nothing() -> None:
    assert on("aurora", 300, scheduler="local", walltime="20:00:00") == []
    assert on("local", 300) == []


@pytest.mark.parametrize(
    ("nodes", "walltime", "queue"),
    [
        (1, "01:00:00", None),
        (2, "01:00:00", "debug"),
        (256, "01:00:00", "debug-scaling"),
        (16, "168:00:00", None),
        (16, "168:00:00", "capacity"),
        (255, "01:00:00", None),
        (256, "12:00:00", "prod"),
        (1025, "18:00:00", "prod"),
        (1025, "18:00:00", "medium"),
        (10624, "24:00:00", None),
        (17, "100:00:00", "R123456"),
        (17, "100:00:00", "M77.aurora-pbs-0001"),
    ],
)
def test_what_some_queue_takes_passes(nodes: int, walltime: str, queue: str | None) -> None:
    assert on_aurora(nodes, walltime, queue) == []


@pytest.mark.parametrize(
    ("nodes", "walltime", "said"),
    [
        (
            17,
            "01:00:01",
            (
                "--walltime: 17 nodes for 01:00:01 cannot be had: 17 to 255 nodes for more than 01:00:00 do not exist on "
                "aurora (ask for at most 01:00:00 (debug-scaling), at most 16 nodes (capacity) or at least 256 "
                "nodes (prod))"
            ),
        ),
        (
            255,
            "12:00:00",
            (
                "--walltime: 255 nodes for 12:00:00 cannot be had: 17 to 255 nodes for more than 01:00:00 do not exist on "
                "aurora (ask for at most 01:00:00 (debug-scaling), at most 16 nodes (capacity) or at least 256 "
                "nodes (prod))"
            ),
        ),
        (
            300,
            "20:00:00",
            (
                "--walltime: 300 nodes for 20:00:00 cannot be had: 17 to 1024 nodes for more than 12:00:00 do not exist "
                "on aurora (ask for at most 12:00:00 (prod), at most 16 nodes (capacity) or at least 2000 nodes "
                "(prod))"
            ),
        ),
        (
            3,
            "200:00:00",
            (
                "--walltime: 3 nodes for 200:00:00 cannot be had: jobs of more than 168:00:00 do not exist on aurora "
                "(ask for at most 168:00:00 (capacity))"
            ),
        ),
        (
            20000,
            "01:00:00",
            (
                "--model: 20000 nodes for 01:00:00 cannot be had: 10625 nodes and more do not exist on aurora "
                "(ask for at most 10624 nodes (prod))"
            ),
        ),
    ],
)
def test_the_gaps_of_aurora(nodes: int, walltime: str, said: str) -> None:
    assert on_aurora(nodes, walltime) == [said]


@pytest.mark.parametrize(
    ("nodes", "walltime", "queue", "said"),
    [
        (
            4,
            "01:00:00",
            "debug",
            (
                "--queue: queue debug of aurora does not take 4 nodes for 01:00:00: it has 1-2 nodes up to 01:00:00 "
                "(debug-scaling takes it)"
            ),
        ),
        (
            17,
            "02:00:00",
            "debug-scaling",
            (
                "--queue: queue debug-scaling of aurora does not take 17 nodes for 02:00:00: it has 2-256 nodes up to "
                "01:00:00 (ask for at most 01:00:00 (debug-scaling))"
            ),
        ),
        (
            100,
            "01:00:00",
            "prod",
            (
                "--queue: queue prod of aurora does not take 100 nodes for 01:00:00: it has 256-1024 nodes up to "
                "12:00:00; 1025-1999 nodes up to 18:00:00; 2000-10624 nodes up to 24:00:00 (debug-scaling takes it)"
            ),
        ),
        (
            1,
            "01:00:00",
            "debug-scalling",
            "--queue: aurora is not known to have a queue `debug-scalling` (did you mean `debug-scaling`?)",
        ),
        (
            1,
            "01:00:00",
            "gpu",
            "--queue: aurora is not known to have a queue `gpu` (known: debug, debug-scaling, prod, capacity)",
        ),
    ],
)
def test_a_queue_that_does_not_take_the_job(nodes: int, walltime: str, queue: str, said: str) -> None:
    assert on_aurora(nodes, walltime, queue) == [said]


def test_bins_of_one_name_are_alternatives() -> None:
    keys: dict[str, Any] = {"account": "science", "queue": "batch"}
    assert on("frontier", 92, walltime="06:00:00", **keys) == []
    assert on("frontier", 91, walltime="02:00:00", **keys) == []
    assert on("frontier", 91, walltime="06:00:00", **keys) == [
        (
            "--queue: queue batch of frontier does not take 91 nodes for 06:00:00: it has 1-91 nodes up to 02:00:00; "
            "92-183 nodes up to 06:00:00; 184-9472 nodes up to 12:00:00 (ask for at most 02:00:00 (batch) or at least 92 "
            "nodes (batch))"
        )
    ]


def test_a_site_without_known_queues_has_any() -> None:
    assert on("perlmutter", 500, account="m1", queue="gpu_preempt", walltime="100:00:00") == []


def test_the_walltime_that_the_site_chose_is_told_as_the_site_s() -> None:
    platform = Platform(name="site", scheduler="pbs", queues=(Queue(name="q", max_walltime="00:10:00"),))
    resolved = Resolved(
        Deployment(models=(ModelEntry(model="m"),), walltime="01:00:00"),
        platform,
        None,
        {"walltime": "platform site"},
        (),
    )
    assert [each.problem.where for each in limits(resolved, 1)] == ["platform site"]


def bare(platform: Platform, walltime: str | None = None, queue: str | None = None) -> Resolved:
    deployment = Deployment(models=(ModelEntry(model="m"),), walltime=walltime, queue=queue)
    return Resolved(deployment, platform, None, {}, ())


seconds = st.integers(1, 400 * 3600)
queues = st.builds(
    Queue,
    name=st.sampled_from("abcd"),
    routes_from=st.none() | st.just("r"),
    min_nodes=st.integers(1, 40),
    max_nodes=st.none() | st.integers(1, 60),
    max_walltime=st.none() | seconds.map(format_walltime) | st.just("for ever"),
)


@given(
    st.lists(queues, max_size=6),
    st.integers(1, 70),
    st.none() | seconds,
    st.sampled_from([None, "a", "r", "zz"]),
)
def test_a_job_is_refused_if_and_only_if_no_bin_takes_it(
    bins: list[Queue], nodes: int, wanted: int | None, named: str | None
) -> None:
    platform = Platform(name="site", scheduler="pbs", queues=tuple(bins))
    walltime = format_walltime(wanted) if wanted else None
    found = limits(bare(platform, walltime, named), nodes)
    offered = [each for each in bins if named in (None, each.name, each.routes_from)]
    unknown = bool(bins) and not offered
    assert bool(found) == (
        unknown or (bool(offered) and not any(taken(each, nodes, wanted) for each in offered))
    )
    for each in found:
        assert not each.certain
        _check_gap(each.problem.message, bins, nodes)


def taken(queue: Queue, nodes: int, wanted: int | None) -> bool:
    try:
        limit = parse_walltime(queue.max_walltime) if queue.max_walltime else None
    except ValueError:
        limit = None
    fits = queue.min_nodes <= nodes <= (queue.max_nodes or nodes)
    return fits and (limit is None or not wanted or wanted <= limit)


def _check_gap(message: str, bins: list[Queue], nodes: int) -> None:
    """The range that is said not to exist holds what was asked for, and no bin reaches into it."""
    gap = re.search(r"had: (\d+) to (\d+) nodes(?: for more than ([\d:]+))? do not exist", message)
    if gap:
        first, last = int(gap[1]), int(gap[2])
        more = parse_walltime(gap[3]) + 1 if gap[3] else None
        assert first <= nodes <= last
        assert not any(taken(each, count, more) for each in bins for count in range(first, last + 1))
