"""`aegis status`: vec-inf's keys and words, one question for all jobs, and nothing that was not asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.registry.model import Service
from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Servers, Site, command_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Outcome

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "vec-inf" / "run"
MODEL = "Meta-Llama-3.1-8B-Instruct"
WAITS = JobStatus(state="PENDING", reason="waits for free nodes")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    command_line(made, monkeypatch)
    return made


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / name).read_text())


def test_a_waiting_job_as_vec_inf_tells_it(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", WAITS, models=[MODEL])
    said = json.loads(aegis("status", "1", "--json-mode").out)
    known = recorded("status_pending.json")
    assert list(said)[:3] == list(known)[:3]
    assert {name: said[name] for name in known} == {**known, "pending_reason": "waits for free nodes"}
    assert "failed_reason" not in said


def test_a_failed_job_as_vec_inf_tells_it(aegis: Callable[..., Outcome], site: Site) -> None:
    status = JobStatus(state="FAILED", word="FAILED", exit_code=1, reason="ended with exit code 1")
    site.job("slurm://1", status, models=[MODEL])
    said = json.loads(aegis("status", "1", "--json").out)
    known = recorded("status_failed.json")
    assert {name: said[name] for name in known} == {**known, "failed_reason": "ended with exit code 1"}


def test_a_job_that_serves_as_vec_inf_tells_it(
    aegis: Callable[..., Outcome], site: Site, servers: Servers
) -> None:
    site.job("slurm://1", RUNNING, models=[MODEL], state="READY", ready=1.0, registry_url=servers.url)
    said = json.loads(aegis("status", "1", "--json").out)
    known = recorded("status_ready.json")
    assert {name: said[name] for name in known} == {**known, "base_url": f"http://{servers.address}/v1"}
    (listed,) = json.loads(aegis("status", "--json").out)
    for name, value in recorded("status_all.json")[0].items():
        wanted = {"job_id": "slurm://1", "base_url": said["base_url"]}.get(name, value)
        assert listed[name] == wanted
    for name in ("reason", "age", "node_list", "restarts", "time_left"):
        assert name in said


def test_the_details(aegis: Callable[..., Outcome], site: Site, servers: Servers) -> None:
    site.job("slurm://1", RUNNING, models=[MODEL], state="READY", ready=1.0, registry_url=servers.url)
    said = aegis("status", "slurm://1").out
    for words in (
        "READY",
        f"http://{servers.address}/v1",
        "node[1-2]",
        "m-0",
        "healthy",
        str(site.run("slurm://1").path),
    ):
        assert words in said
    site.job("slurm://2", WAITS)
    said = aegis("status", "2").out
    assert "base url   UNAVAILABLE" in said
    assert "reason     waits for free nodes" in said


def test_all_jobs_cost_one_question(aegis: Callable[..., Outcome], site: Site) -> None:
    for number in range(20):
        site.job(f"slurm://{number}", RUNNING)
    site.job("slurm://90", accounted=True, state="FAILED", ended=time.time() - 9e5, reason="long ago")
    site.job("slurm://91", accounted=True, state="FAILED", ended=time.time() - 9, reason="just now")
    said = aegis("status")
    assert said.code == 0
    assert said.err == ""
    assert len(said.out.splitlines()) == 22
    assert "just now" in said.out
    assert "long ago" not in said.out
    assert len(site.slurm.asked) == 1
    assert sorted(site.slurm.asked[0]) == sorted(f"slurm://{number}" for number in range(20))
    assert "long ago" in aegis("status", "--all").out


def test_components_are_rows(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://5+0", RUNNING, models=["a"])
    site.job("slurm://5+1", WAITS, models=["b"])
    said = aegis("status", "5").out
    assert [line.split()[:3] for line in said.splitlines()[1:]] == [
        ["slurm://5+0", "a", "LAUNCHING"],
        ["slurm://5+1", "b", "PENDING"],
    ]
    assert [each["job_id"] for each in json.loads(aegis("status", "5", "--json").out)] == [
        "slurm://5+0",
        "slurm://5+1",
    ]
    assert json.loads(aegis("status", "5+1", "--json").out)["model_name"] == "b"


def test_jobs_of_a_scheduler_that_is_not_here(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("pbs://1.s", RUNNING)
    site.job("slurm://1", RUNNING)
    (site.folder / "bin" / "qsub").unlink()
    said = aegis("status")
    assert "pbs://1.s" not in said.out
    assert said.err == "1 job of pbs not shown: its commands are not on PATH here\n"
    assert site.pbs.asked == []


def test_a_row_of_pbs_is_short_and_its_name_is_taken(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("pbs://12.server.site.org+1", RUNNING)
    name = aegis("status").out.splitlines()[1].split()[0]
    assert name == "pbs://12.server+1"
    assert json.loads(aegis("status", name, "--json").out)["job_id"] == "pbs://12.server.site.org+1"


def test_members_without_an_api_have_no_port(aegis: Callable[..., Outcome], site: Site) -> None:
    servers = Servers(**{"m-0": "healthy", "m-0.rank1": "healthy"})
    servers.service = lambda name: Service(  # type: ignore[method-assign]
        service_id=name,
        host="node1",
        port=0 if "rank" in name else 8000,
        service_type="vllm",
        status="healthy",
        last_seen=time.time(),
        metadata={"rank": 1} if "rank" in name else {},
    )
    site.job("slurm://1", RUNNING, state="READY", ready=1.0, registry_url=servers.url)
    said = aegis("status", "1").out
    servers.close()
    rows = [line.split() for line in said.splitlines() if line.startswith("m-0")]
    assert [row[2] for row in rows] == ["node1:8000", "node1"]


def test_foreign_words_cannot_drive_the_terminal(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", accounted=True, state="FAILED", ended=9.0, reason="bad\x1b[2J\nsecond line")
    said = aegis("status", "1").out
    assert "reason     bad\\x1b[2J\n           second line\n" in said


def test_any_job_of_one_s_own(aegis: Callable[..., Outcome], site: Site) -> None:
    site.slurm.answers["slurm://77"] = JobStatus(
        state="LAUNCHING", name="gpt2-vec-inf", nodes="node3", log="/home/me/slurm-77.out"
    )
    said = aegis("status", "77")
    assert all(words in said.out for words in ("gpt2\n", "LAUNCHING", "node3", "/home/me/slurm-77.out"))


@pytest.mark.parametrize(
    "name", ["1; touch X", "$(touch X)", "`touch X`", "1\ntouch X", "9", "slurm://9", ""]
)
def test_an_unknown_job(aegis: Callable[..., Outcome], site: Site, name: str) -> None:
    said = aegis("status", name)
    assert (said.code, said.out) == (4, "")
    assert said.err.startswith("error: there is no job")
    assert not list(site.folder.rglob("X"))
    assert not (site.folder / "ran").exists()


def test_a_silent_scheduler(aegis: Callable[..., Outcome], site: Site) -> None:
    site.job("slurm://1", RUNNING)
    aegis("status")
    site.slurm.down = "slurmctld does not answer"
    said = aegis("status")
    assert said.code == 0
    assert "UNKNOWN" in said.out
    assert "ago it said: running" in said.out
    (row,) = json.loads(aegis("status", "--json").out)
    assert row["model_status"] == "UNKNOWN"
    assert row["answer_age"] >= 0


def test_no_jobs(aegis: Callable[..., Outcome], site: Site) -> None:
    said = aegis("status")
    assert (said.code, said.out, said.err) == (0, "", "no jobs\n")
    assert aegis("status", "--json").out == "[]\n"
