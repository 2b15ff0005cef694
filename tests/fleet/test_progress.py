from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from aegis.fleet.progress import Counts, Failure, Member, Progress
from aegis.registry.model import STATUSES, Service

if TYPE_CHECKING:
    from aegis.registry.model import Status


def service(
    status: Status, name: str = "m-0", *, rank: int = 0, reason: str = "", **metadata: Any
) -> Service:
    return Service(
        service_id=f"{name}.rank{rank}" if rank else name,
        host="h",
        port=0 if rank else 8000,
        service_type="vllm",
        status=status,
        last_seen=0.0,
        metadata={"instance": name, "rank": rank, "node": "n", "reason": reason, **metadata},
    )


def following(*names: str) -> Progress:
    return Progress(Member(name, name, f"node of {name}", ("/w/.aegis-manifest",)) for name in names)


def told(progress: Progress, *services: Service) -> list[str]:
    return progress.apply(services, [], reset=False)


def test_a_life_is_told_in_lines() -> None:
    progress = following("m-0")
    lines = [
        told(progress, service("pending")),
        told(progress, service("starting", reason="starting")),
        told(progress, service("starting", reason="nothing listens on port 8000 yet")),
        told(progress, service("healthy", ready_after=2.34, restarts=0)),
        told(progress, service("healthy", ready_after=2.34, restarts=0)),
        told(progress, service("unhealthy", reason="killed by SIGKILL; next start in 1 s")),
        told(progress, service("starting", reason="restarted", restarts=1)),
        told(progress, service("healthy", ready_after=2.34, restarts=1)),
        told(progress, service("failed", reason="out of memory")),
        told(progress, service("failed", reason="out of memory")),
    ]
    assert lines == [
        [],
        ["m-0 starting on n, h:8000"],
        [],
        ["m-0 healthy after 2.3 s at h:8000"],
        [],
        ["m-0 unhealthy: killed by SIGKILL; next start in 1 s"],
        ["m-0 starting on n, h:8000"],
        ["m-0 healthy again (start 2) at h:8000"],
        ["m-0 failed: out of memory"],
        [],
    ]


def test_a_failed_first_start_is_told_though_the_status_stays() -> None:
    progress = following("m-0")
    told(progress, service("starting", reason="starting"))
    retry = service("starting", reason="exited with code 1; next start in 1 s")
    assert told(progress, retry) == ["m-0 starting: exited with code 1; next start in 1 s"]


def test_a_member_has_no_port_to_tell() -> None:
    assert told(following("m-0"), service("healthy", rank=1)) == ["m-0.rank1 healthy at h"]


def test_an_instance_fails_with_any_of_its_members() -> None:
    progress = following("m-0", "m-1")
    told(progress, service("healthy"), service("healthy", rank=1), service("healthy", "m-1"))
    assert progress.counts == Counts(wanted=2, healthy=2, failed=0)
    told(progress, service("failed", rank=1, reason="boom", tail=["a", "b"]))
    assert progress.counts == Counts(wanted=2, healthy=1, failed=1)
    assert progress.counts.settled
    assert not progress.counts.lost
    [failure] = progress.failed
    assert failure == Failure(("m-0.rank1 on n",), "boom", ("a", "b"))
    told(progress, service("failed", "m-1", reason="boom"))
    assert progress.counts.lost


def test_strangers_do_not_count() -> None:
    progress = following("m-0")
    told(progress, service("healthy", "other-0"), service("failed", "other-1"))
    assert progress.counts == Counts(wanted=1, healthy=0, failed=0)
    assert progress.heads == {}


def test_a_reset_forgets_and_a_removal_removes() -> None:
    progress = following("m-0", "m-1")
    told(progress, service("healthy"), service("healthy", "m-1"))
    progress.apply([], ["m-0", "unknown"], reset=False)
    assert set(progress.heads) == {"m-1"}
    lines = progress.apply([service("healthy")], [], reset=True)
    assert lines == ["m-0 healthy at h:8000"]
    assert set(progress.heads) == {"m-0"}


@given(
    st.lists(
        st.lists(
            st.builds(
                service,
                st.sampled_from(STATUSES),
                st.sampled_from(["m-0", "m-1", "x"]),
                rank=st.integers(0, 1),
                reason=st.sampled_from(["", "starting", "boom", "x; next start in 1 s"]),
            )
        )
    )
)
def test_counts_never_lie(changes: list[list[Service]]) -> None:
    progress = following("m-0", "m-1")
    for change in changes:
        progress.apply(change, [], reset=False)
        counts = progress.counts
        assert 0 <= counts.healthy + counts.failed <= counts.wanted == 2
        assert counts.settled >= counts.lost
        assert not told(progress, *progress.services.values())  # nothing is told twice


def test_what_was_not_staged_fails_the_instance_that_waits_for_it() -> None:
    members = [
        Member("m-0", "m-0", "a", ("/w/.aegis-manifest",)),
        Member("m-0.rank1", "m-0", "b", ("/w/.aegis-manifest",)),
        Member("m-1", "m-1", "c", ("/w/.aegis-manifest",)),
        Member("x-0", "x-0", "b", ("/x/.aegis-manifest",)),
    ]
    progress = Progress(members)
    told(progress, *(service("pending", each.instance, node=each.node) for each in members))
    assert progress.refuse("b", "/w/.aegis-manifest", "the disk is full (b)") == ["m-0", "m-0.rank1"]
    assert progress.refuse("a", "/w/.aegis-manifest", "the same") == []
    assert progress.refuse("nobody", "/w/.aegis-manifest", "") == []
    assert progress.counts == Counts(wanted=3, healthy=0, failed=1)
    assert not progress.given_up
    told(progress, service("failed", reason="told to end before its node had all that it needs"))
    assert progress.failed == [Failure(("m-0",), "the disk is full (b)", ())]  # once, and why
    told(progress, service("failed", "m-1"), service("failed", "x-0"))
    assert progress.counts.lost
    assert progress.given_up
