"""Jobs are found again, by whatever part of their name; and nothing else happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import NotFoundError, SiteError
from aegis.fleet.jobs import Jobs, is_final
from aegis.runs import Manifest, is_meant, select
from aegis.schedulers.base import JobStatus
from aegis.schedulers.transport import Here
from tests.fleet.jobs_site import RUNNING, Site

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SERVER = "aurora-pbs-0001.hostmgmt.cm"
HET = ["slurm://17480109+0", "slurm://17480109+1"]
STRANGER = JobStatus(
    state="LAUNCHING",
    name="Meta-Llama-3.1-8B-Instruct-vec-inf",
    submitted=7.0,
    walltime=3600,
    log="/x/slurm.out",
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class Far(Here):
    """A machine at the far end: what it is asked is recorded."""

    name = "me@login"

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.ran: list[list[str]] = []


@pytest.mark.parametrize(
    ("text", "handle"),
    [
        ("slurm://12", "slurm://12"),
        ("12", "slurm://12"),
        (f"pbs://77.{SERVER}", f"pbs://77.{SERVER}"),
        (f"77.{SERVER}", f"pbs://77.{SERVER}"),
        ("77.aurora-pbs-0001", f"pbs://77.{SERVER}"),
        ("77.aurora-pbs-0001.hostmgmt", f"pbs://77.{SERVER}"),
        ("77", f"pbs://77.{SERVER}"),
        ("pbs://77", f"pbs://77.{SERVER}"),
        (f"77.{SERVER}.lab.test", f"pbs://77.{SERVER}"),
        ("1015[3]", f"pbs://1015[3].{SERVER}"),
        ("1015[]", f"pbs://1015[].{SERVER}"),
        ("17480109+1", "slurm://17480109+1"),
        ("slurm://17480109+0", "slurm://17480109+0"),
        ("9+1", "pbs://9.srv+1"),
        ("9.srv+0", "pbs://9.srv+0"),
        ("k3f9ab", "local://k3f9ab"),
    ],
)
def test_a_job_is_found_by_what_people_write(site: Site, text: str, handle: str) -> None:
    for known in (
        *("slurm://12", *HET, "local://k3f9ab", "pbs://9.srv+0", "pbs://9.srv+1"),
        *(f"pbs://{number}.{SERVER}" for number in ("77", "1015[3]", "1015[]")),
    ):
        site.job(known)
    assert site.jobs().find(text).job == handle
    assert site.slurm.asked == site.pbs.asked == []


def test_all_components_of_a_job(site: Site) -> None:
    for handle in reversed(HET):
        site.job(handle)
    jobs = site.jobs()
    assert [each.job for each in jobs.find_all("17480109")] == HET
    assert [each.job for each in jobs.components(HET[1])] == HET
    with pytest.raises(NotFoundError, match="has 2 components") as error:
        jobs.find("slurm://17480109")
    assert error.value.hint == f"name one of {', '.join(HET)}"


def test_an_id_of_two_schedulers_names_both(site: Site) -> None:
    site.job("slurm://77")
    site.job(f"pbs://77.{SERVER}")
    with pytest.raises(NotFoundError, match=f"may be any of pbs://77.{SERVER}, slurm://77"):
        site.jobs().find("77")
    assert site.jobs().find("slurm://77").job == "slurm://77"


@pytest.fixture
def with_commands(site: Site) -> Site:
    for name in ("sbatch", "qsub"):
        command = site.folder / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text("#!/bin/sh\ntouch ran\n")
        command.chmod(0o755)
    site.environ["PATH"] = f"{site.folder / 'bin'}:{site.environ['PATH']}"
    return site


def test_a_job_that_only_the_scheduler_knows(with_commands: Site) -> None:
    site = with_commands
    site.slurm.answers["slurm://123"] = STRANGER
    found = site.jobs().find("123")
    assert (found.job, found.models, found.run_dir) == ("slurm://123", ["Meta-Llama-3.1-8B-Instruct"], "")
    assert (found.created, found.walltime) == (7.0, 3600)
    (view,) = site.jobs().views([found])
    assert (view.model_status, view.log) == ("LAUNCHING", "/x/slurm.out")
    assert len(site.slurm.asked) <= 2


@pytest.mark.parametrize(
    "text",
    [
        "124",
        "",
        "/",
        "../x",
        "1; touch ran",
        "1\ntouch ran",
        "$(touch ran)",
        "-x",
        "--help",
        "slurm://",
        "1 2",
        "١٢",
    ],
)
def test_an_unknown_job_is_not_found_and_nothing_runs(with_commands: Site, text: str) -> None:
    site = with_commands
    site.job("slurm://123")
    with pytest.raises(NotFoundError, match="there is no job") as error:
        site.jobs().find(text)
    assert error.value.hint
    assert not list(site.folder.rglob("ran"))
    for asked in (*site.slurm.asked, *site.pbs.asked):
        assert all(each == "slurm://123" or each.partition("://")[2] == text for each in asked)


def test_a_mistyped_id_is_guessed(site: Site) -> None:
    site.job("slurm://17480109")
    with pytest.raises(NotFoundError) as error:
        site.jobs().find("slurm://1748010")
    assert error.value.hint == "did you mean `slurm://17480109`?"


def test_nobody_is_asked_where_there_is_no_scheduler(site: Site) -> None:
    site.environ["PATH"] = str(site.folder)
    with pytest.raises(NotFoundError):
        site.jobs().find("123")
    assert site.slurm.asked == []


def test_a_silent_scheduler_is_no_proof_that_a_job_does_not_exist(with_commands: Site) -> None:
    site = with_commands
    site.slurm.down = "slurmctld is away"
    with pytest.raises(SiteError, match="slurm does not answer: slurmctld is away"):
        site.jobs().find("slurm://123")


def test_all_jobs_come_oldest_first(site: Site) -> None:
    site.job("slurm://2", created=20.0)
    site.job("slurm://1", created=10.0)
    assert [each.job for each in site.jobs().all()] == ["slurm://1", "slurm://2"]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b"[]", b'{"job": 1}'])
def test_a_job_with_a_damaged_manifest_is_still_a_job(site: Site, content: bytes) -> None:
    site.job("slurm://3+1", RUNNING, models=["org/m-7B"])
    site.run("slurm://3+1").manifest.write_bytes(content)
    jobs = site.jobs()
    (found,) = jobs.all()
    assert (found.job, found.models, jobs.find("3").job) == ("slurm://3+1", ["m-7B"], "slurm://3+1")
    (view,) = jobs.views([found])
    assert (view.model_status, view.reason) == (
        "LAUNCHING",
        "there is no manifest of aegis: what it serves is not known",
    )
    site.run("slurm://3+1").manifest.unlink()
    assert jobs.all() == []


def test_states_of_many_cost_one_question(site: Site) -> None:
    handles = [f"slurm://{number}" for number in range(40)]
    for handle in handles:
        site.job(handle, RUNNING)
    site.job("pbs://1.s", RUNNING)
    found = site.jobs().states([*handles, "pbs://1.s"])
    assert {each.state for each in found.values()} == {"LAUNCHING"}
    assert len(found) == 41
    assert len(site.slurm.asked) == len(site.pbs.asked) == 1


def test_the_far_side_is_read_with_one_command(site: Site) -> None:
    site.job("slurm://1", created=10.0, models=["a model\nwith 'lines'"])
    site.job("slurm://2", RUNNING, created=20.0)
    site.run("slurm://1").path.joinpath("other.json").write_text('{"x": "\\u001e"}')
    far = Far(site.environ)
    jobs = Jobs({"HOME": str(site.folder / "laptop")}, far, schedulers={"slurm": site.slurm})
    jobs.is_here = False
    assert [each.job for each in jobs.all()] == ["slurm://1", "slurm://2"]
    assert jobs.find("2").job == "slurm://2"
    assert [view.model_status for view in jobs.views([jobs.find("2")])] == ["LAUNCHING"]
    assert (site.folder / "laptop/.local/state/aegis/answers.slurm@me-login.json").is_file()


def test_no_index_at_the_far_side_is_no_job(site: Site) -> None:
    jobs = Jobs(site.environ, Far(site.environ))
    jobs.is_here = False
    assert jobs.all() == []


def test_a_manifest_is_read_again(site: Site) -> None:
    manifest = site.job("slurm://1")
    site.note("slurm://1", state="READY")
    jobs = site.jobs()
    assert jobs.reload(manifest).state == "READY"
    site.run("slurm://1").manifest.write_text("")
    assert jobs.reload(manifest) == manifest


def test_what_is_final() -> None:
    ended = Manifest(job="slurm://1", name="", models=[], run_dir="", state="SHUTDOWN")
    assert not is_final(ended)
    assert is_final(msgspec.structs.replace(ended, accounted=True))
    assert is_final(msgspec.structs.replace(ended, job="local://x"))


IDS = st.from_regex(r"[0-9]{1,3}(\.[a-c]{1,2}){0,2}(\+[01])?", fullmatch=True)


@given(text=IDS, handles=st.sets(st.builds("{}://{}".format, st.sampled_from(["slurm", "pbs"]), IDS)))
def test_what_is_selected_is_one_job(text: str, handles: set[str]) -> None:
    try:
        found = select(text, handles)
    except NotFoundError:
        return
    assert len({handle.partition("+")[0] for handle in found}) <= 1
    assert all(is_meant(text, handle) for handle in found)
    assert all(select(handle, handles) == [handle] for handle in handles)
