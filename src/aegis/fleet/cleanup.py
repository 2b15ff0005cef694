"""Delete the run directories of jobs that have ended: ours and vec-inf's, found by their manifests, and nothing else."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError, NotFoundError
from aegis.runs import ENDED, Manifest, component_of, forget, is_meant, slug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aegis.fleet.jobs import Jobs

LOG_DIR = "~/.aegis-logs"
LOG_DIR_VARIABLE = "AEGIS_LOG_DIR"
DAY = 86400.0
SCHEDULER_LOGS = {"slurm": (".slurm", "*.{}.log"), "pbs": (".pbs", "{}.*")}  # by the number of a job


class Filters(Struct, frozen=True, kw_only=True):
    """Which run directories are meant: those that match all that is given."""

    model_family: str | None = None
    model_name: str | None = None
    job_id: str | None = None
    before_job_id: int | None = None
    older_than: float | None = None  # days since the job was submitted

    @property
    def given(self) -> bool:
        """Whether anything is."""
        return any(value is not None for value in msgspec.structs.astuple(self))


class Run(Struct, frozen=True, kw_only=True):
    """A run directory with a manifest."""

    path: Path
    family: str
    job: str  # handle
    models: tuple[str, ...]
    created: float
    manifest: Manifest | None  # None: of vec-inf


class Cleaned(Struct, frozen=True):
    """What was, or would be, deleted; and what stays, with why."""

    deleted: tuple[Path, ...] = ()
    kept: tuple[tuple[Path, str], ...] = ()


class _Foreign(Struct):
    """What vec-inf's manifests have in common."""

    model_name: str
    json_file: str
    slurm_job_id: str | int | None = None  # those of a batch have none


def log_root(given: str | None, environ: Mapping[str, str]) -> Path:
    """Return the folder below which run directories are looked for.

    Raises:
        NotFoundError: there is none.
    """
    root = Path(given or environ.get(LOG_DIR_VARIABLE) or LOG_DIR).expanduser()
    if not root.is_dir():
        raise NotFoundError(f"there is no log directory {root}", hint="name another with --log-dir")
    return Path(os.path.abspath(root))  # noqa: PTH100 - links stay as the user wrote them


def plan(jobs: Jobs, root: Path, filters: Filters, *, everything: bool = False) -> Cleaned:
    """Return what may be deleted below a root, and what must stay; nothing is deleted.

    Raises:
        ConfigError: no filter is given, and not everything is meant.
    """
    if not filters.given and not everything:
        raise ConfigError(
            "no filter is given",
            hint="choose runs by model, job or age, or give --all for all that have ended",
        )
    runs = [run for run in runs_below(root) if matches(run, filters)]
    alive = _alive(jobs, runs)
    return Cleaned(
        tuple(run.path for run in runs if run.path not in alive),
        tuple((run.path, alive[run.path]) for run in runs if run.path in alive),
    )


def delete(jobs: Jobs, paths: Sequence[Path]) -> Cleaned:
    """Delete run directories, and take them out of the index."""
    deleted, kept = [], []
    for path in paths:
        run = _read(path)
        try:
            shutil.rmtree(path)
        except OSError as error:
            kept.append((path, f"it cannot be deleted: {error.strerror}: {error.filename}"))
            continue
        deleted.append(path)
        if run and run.manifest:
            _delete_scheduler_log(run)
        with contextlib.suppress(OSError):  # other runs of the family are there
            path.parent.rmdir()
    forget(deleted, jobs.environ)
    return Cleaned(tuple(deleted), tuple(kept))


def _delete_scheduler_log(run: Run) -> None:
    """Delete what the scheduler itself wrote of a job, and its folder if no other job's is there."""
    scheme, _, job_id = run.job.partition("://")
    number = re.match(r"\d+", job_id)
    if scheme not in SCHEDULER_LOGS or not number or component_of(run.job):
        return
    name, pattern = SCHEDULER_LOGS[scheme]
    with contextlib.suppress(OSError):
        for file in (run.path.parent / name).glob(pattern.format(number[0])):
            file.unlink()
        (run.path.parent / name).rmdir()


def runs_below(root: Path) -> Iterator[Run]:
    """Yield every `<family>/<model>.<job id>/` with a manifest in it; links are not followed."""
    for family in _folders(root):
        for folder in _folders(family):
            if run := _read(folder):
                yield run


def matches(run: Run, filters: Filters) -> bool:
    """Tell whether a run is meant."""
    number = re.match(r"\d+", run.job.partition("://")[2])
    names = {*run.models, *map(slug, run.models)}
    return (
        (filters.model_family is None or run.family == filters.model_family)
        and (filters.model_name is None or filters.model_name in names)
        and (filters.job_id is None or is_meant(filters.job_id, run.job))
        and (filters.before_job_id is None or bool(number and int(number[0]) < filters.before_job_id))
        and (filters.older_than is None or time.time() - run.created > filters.older_than * DAY)
    )


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _read(folder: Path) -> Run | None:
    """Return the run of a folder; None where it holds no manifest."""
    _, dot, job_id = folder.name.rpartition(".")
    if not dot or not job_id:
        return None
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        manifest = msgspec.json.decode((folder / f"{folder.name}.json").read_bytes(), type=Manifest)
        return Run(
            path=folder,
            family=folder.parent.name,
            job=manifest.job,
            models=tuple(manifest.models),
            created=manifest.created,
            manifest=manifest,
        )
    # of a batch of vec-inf's, the file has the model's name and the folder the batch's
    for file in sorted(folder.glob(f"*.{glob.escape(job_id)}.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            foreign = msgspec.json.decode(file.read_bytes(), type=_Foreign)
            return Run(
                path=folder,
                family=folder.parent.name,
                job=f"slurm://{foreign.slurm_job_id or job_id}",
                models=(foreign.model_name,),
                created=file.stat().st_mtime,
                manifest=None,
            )
    return None


def _alive(jobs: Jobs, runs: Sequence[Run]) -> dict[Path, str]:
    """Return the runs that must stay, with the reason: whatever is not known to have ended counts as running."""
    alive: dict[Path, str] = {}
    ours = [(run, run.manifest) for run in runs if run.manifest]
    found = jobs.views([manifest for _, manifest in ours])
    for (run, _), view in zip(ours, found, strict=True):
        ended = view.model_status in ENDED and (view.final or jobs.silence(run.job))
        if not ended:
            alive[run.path] = f"{run.job} is {view.model_status}"
    foreign = [run for run in runs if run.manifest is None]
    known = jobs.present("slurm")
    states = jobs.states([run.job for run in foreign]) if foreign and known else {}
    for run in foreign:
        status = states.get(run.job)
        if not known or jobs.silence(run.job):
            alive[run.path] = f"{run.job} cannot be asked for"
        elif status is not None and status.state not in ENDED:
            alive[run.path] = f"{run.job} is {status.state}"
    return alive
