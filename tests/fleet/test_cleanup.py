"""Only run directories of jobs that have ended are deleted, whatever the root and the filters."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError, NotFoundError
from aegis.fleet.cleanup import Cleaned, Filters, Run, delete, log_root, matches, plan
from aegis.runs import index_handles
from aegis.schedulers.base import JobStatus
from tests.fleet.jobs_site import RUNNING, Site

ENDED: dict[str, Any] = {"state": "SHUTDOWN", "accounted": True}
GONE = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.job("slurm://10", **ENDED, models=["org/Llama-3-8B"], created=time.time() - 10 * 86400)
    made.job("slurm://20", **ENDED, models=["org/Qwen2.5-7B"])
    made.job("pbs://30.s", **ENDED, models=["org/Llama-3-70B"])
    made.job("local://k3f9", **ENDED, models=["tiny"])
    return made


def names(paths: tuple[Path, ...]) -> list[str]:
    return sorted(path.name for path in paths)


def meant(site: Site, **filters: Any) -> list[str]:
    return names(plan(site.jobs(), site.logs, Filters(**filters)).deleted)


ALL = ["Llama-3-70B.30.s", "Llama-3-8B.10", "Qwen2.5-7B.20", "tiny.k3f9"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"model_family": "Llama-3"}, ALL[:2]),
        ({"model_family": "Llama"}, []),
        ({"model_name": "Llama-3-8B"}, ["Llama-3-8B.10"]),
        ({"model_name": "org/Llama-3-8B"}, ["Llama-3-8B.10"]),
        ({"model_name": "Llama-3-8"}, []),
        ({"job_id": "20"}, ["Qwen2.5-7B.20"]),
        ({"job_id": "30"}, ["Llama-3-70B.30.s"]),
        ({"job_id": "k3f9"}, ["tiny.k3f9"]),
        ({"job_id": "0"}, []),
        ({"job_id": ""}, []),
        ({"before_job_id": 30}, ["Llama-3-8B.10", "Qwen2.5-7B.20"]),
        ({"before_job_id": 0}, []),
        ({"older_than": 5.0}, ["Llama-3-8B.10"]),
        ({"older_than": 0.0}, ALL),
        ({"model_family": "Llama-3", "before_job_id": 20}, ["Llama-3-8B.10"]),
        ({"model_family": ".."}, []),
        ({"model_family": "*"}, []),
    ],
)
def test_the_filters(site: Site, filters: dict[str, Any], expected: list[str]) -> None:
    assert meant(site, **filters) == expected


def test_nothing_is_meant_without_a_filter(site: Site) -> None:
    with pytest.raises(ConfigError, match="no filter is given"):
        plan(site.jobs(), site.logs, Filters())
    assert names(plan(site.jobs(), site.logs, Filters(), everything=True).deleted) == ALL


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (RUNNING, {}),
        (JobStatus(state="PENDING"), {}),
        (JobStatus(state="UNKNOWN", word="ODD"), {}),
        (RUNNING, {"state": "SHUTDOWN", "ended": 5.0}),  # the other components of its job run
        (None, {"created": 9e9}),  # a moment ago: its scheduler may not know it yet
    ],
)
def test_what_may_run_stays(site: Site, status: JobStatus | None, fields: dict[str, Any]) -> None:
    site.job("slurm://40", status, models=["live-1B"], **fields)
    planned = plan(site.jobs(), site.logs, Filters(job_id="40"))
    assert planned.deleted == ()
    assert [path.name for path, _ in planned.kept] == ["live-1B.40"]


def test_a_silent_scheduler_keeps_its_jobs(site: Site) -> None:
    site.job("slurm://40", GONE, models=["m-1B"])
    site.slurm.down = "slurmctld does not answer"
    assert meant(site, job_id="40") == []
    site.slurm.down = ""
    assert meant(site, job_id="40") == ["m-1B.40"]


def vec_inf(root: Path, family: str, stem: str, job_id: str, **fields: Any) -> Path:
    folder = root / family / f"{stem}.{job_id}"
    folder.mkdir(parents=True)
    model = fields.pop("model_name", stem)
    content = {"model_name": model, "json_file": "/x.json", "slurm_job_id": job_id, **fields}
    (folder / f"{model}.{job_id}.json").write_bytes(msgspec.json.encode(content))
    return folder


def test_runs_of_vec_inf(site: Site) -> None:
    root = site.folder / "vec-inf-logs"
    old = vec_inf(root, "Meta-Llama-3.1", "Meta-Llama-3.1-8B-Instruct", "1001")
    live = vec_inf(root, "Meta-Llama-3.1", "Meta-Llama-3.1-8B-Instruct", "1002")
    batch = vec_inf(root, "BATCH-a-b", "BATCH-a-b", "1030", model_name="b", slurm_job_id=None)
    site.slurm.answers["slurm://1002"] = RUNNING
    jobs = site.jobs()
    jobs._present = {"slurm"}
    planned = plan(jobs, root, Filters(), everything=True)
    assert set(planned.deleted) == {old, batch}
    assert [path for path, _ in planned.kept] == [live]
    jobs = site.jobs()
    jobs._present = set()
    assert plan(jobs, root, Filters(), everything=True).deleted == ()


def test_only_run_directories_are_ever_meant(site: Site) -> None:
    outside = site.folder / "outside" / "fam" / "m.1"
    outside.mkdir(parents=True)
    source = site.run("slurm://10")
    (outside / "m.1.json").write_bytes(source.manifest.read_bytes())
    (site.logs / "linked").symlink_to(outside.parent)
    (site.logs / "Llama-3" / "link.1").symlink_to(outside)
    for path, text in {
        "fam/m.1/note.json": "{}",
        "fam/m.2/m.2.json": "[]",
        "fam/m.3/m.3.json": '{"model_name": "m"}',
        "fam/m.4/other.4.json": "{",
        "fam/nodot/nodot.json": source.manifest.read_text(),
        "m.5/m.5.json": source.manifest.read_text(),
        "a/b/m.6/m.6.json": source.manifest.read_text(),
    }.items():
        file = site.logs / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert names(plan(site.jobs(), site.logs, Filters(), everything=True).deleted) == ALL
    for root in (site.folder.parent, site.logs / "Llama-3", site.run("slurm://10").path, Path("/proc")):
        assert plan(site.jobs(), root, Filters(), everything=True) == Cleaned()


def test_deleting(site: Site) -> None:
    (path,) = plan(site.jobs(), site.logs, Filters(job_id="20")).deleted
    (path / "out").symlink_to(site.logs / "Llama-3")
    assert delete(site.jobs(), [path]) == Cleaned((path,))
    assert not path.parent.exists()
    assert "slurm://20" not in index_handles(site.environ)
    assert meant(site, older_than=0.0) == [name for name in ALL if name != "Qwen2.5-7B.20"]


def test_what_cannot_be_deleted_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    path = site.run("slurm://20").path
    done = delete(site.jobs(), [path])
    assert done.deleted == ()
    assert done.kept == ((path, f"it cannot be deleted: Permission denied: {path}"),)
    assert "slurm://20" in index_handles(site.environ)


def test_the_root(tmp_path: Path) -> None:
    (tmp_path / ".aegis-logs").mkdir()
    os.environ["HOME"] = str(tmp_path)  # the test's own environment
    assert log_root(None, {}) == tmp_path / ".aegis-logs"
    assert log_root(None, {"AEGIS_LOG_DIR": str(tmp_path)}) == tmp_path
    assert log_root("~/.aegis-logs", {}) == tmp_path / ".aegis-logs"
    with pytest.raises(NotFoundError, match="there is no log directory"):
        log_root(str(tmp_path / "none"), {})


@given(job=st.text(max_size=9), before=st.integers(-5, 50), wanted=st.text(max_size=3))
def test_any_id_is_compared(job: str, before: int, wanted: str) -> None:
    run = Run(path=Path("x"), family="f", job=f"slurm://{job}", models=("m",), created=0, manifest=None)
    matches(run, Filters(before_job_id=before, job_id=wanted))


def test_a_folder_that_cannot_be_read_is_passed_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert plan(site.jobs(), site.logs, Filters(), everything=True).deleted == ()


def test_what_the_scheduler_wrote_of_a_job_goes_with_it(site: Site) -> None:
    site.job("slurm://40+0", GONE, models=["m-1B"])
    site.job("slurm://140", GONE, models=["m-1B"])
    site.job("pbs://40.server", GONE, models=["n-1B"])
    site.job("local://40abcd", models=["m-1B"], state="SHUTDOWN")
    logs = [site.logs / "m" / ".slurm" / name for name in ("m-1B.40.log", "m-1B.140.log")]
    logs.append(site.logs / "n" / ".pbs" / "40.server.OU")
    for log in logs:
        log.parent.mkdir(exist_ok=True)
        log.touch()

    def left_after(job_id: str) -> list[str]:
        jobs = site.jobs()
        delete(jobs, plan(jobs, site.logs, Filters(job_id=job_id)).deleted)
        return [log.name for log in logs if log.exists()]

    assert left_after("40abcd") == ["m-1B.40.log", "m-1B.140.log", "40.server.OU"]
    assert left_after("slurm://40") == ["m-1B.140.log", "40.server.OU"]
    assert left_after("pbs://40") == ["m-1B.140.log"]
    assert not (site.logs / "n").exists()
