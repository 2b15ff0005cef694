"""The run directory of a job, its manifest, and the index by which jobs are found again.

<log_dir>/<family>/<model>.<job id>/
<model>.<job id>.sh .json .out .err    script, manifest, output
fleet.jsonl, agent.pyz                 what each node is told, and by whom
instances/<instance>.log               everything an engine said
nodes/<node>.log                       everything an agent said
registry.journal, secrets (0600)
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from aegis.decoding import from_json
from aegis.errors import AegisError, NotFoundError
from aegis.files import write_atomically
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

JobState = Literal["PENDING", "LAUNCHING", "READY", "FAILED", "SHUTDOWN", "UNKNOWN"]
ENDED: tuple[JobState, ...] = ("FAILED", "SHUTDOWN")


class Manifest(Struct, kw_only=True):
    """What is known of a job; kept as JSON in its run directory."""

    job: str  # handle: local://k3f9
    name: str
    models: list[str]
    run_dir: str
    state: JobState = "PENDING"
    reason: str = ""
    created: float = 0.0  # epoch seconds
    ready: float | None = None  # first instance healthy
    settled: bool = False  # every instance was healthy or given up once
    ended: float | None = None
    exit_code: int | None = None
    walltime: int | None = None  # seconds
    host: str = ""  # where the head of the job runs
    node_list: str = ""  # of a job that has ended, as the scheduler writes it
    pid: int | None = None
    pid_started: int | None = None  # clock ticks after boot: a pid alone may belong to somebody else by now
    instances: int = 0
    nodes: int = 0
    platform: str = ""
    queue: str = ""  # as it was asked for: a routing queue sends jobs on
    secrets_file: str | None = None  # of the submission; removed when the job has ended
    restarts: int = 0  # times that the scheduler put the job back into the queue
    accounted: bool = False  # the scheduler's last word is in it: nothing is left to ask
    log: str = ""  # the scheduler's own, of a job that never began one
    registry_url: str | None = None
    base_url: str | None = msgspec.field(
        default=None, name="server_address"
    )  # as vec-inf's scripts look for it
    endpoints_file: str | None = None
    service: str | None = None  # that the job is found by, with those that stand in for it
    predecessor: str | None = None  # job that it takes over from
    successor: str | None = None  # job that takes over from it
    gateways: list[str] = []  # host:port of those that are healthy
    deployment: dict[str, Any] = {}


class RunDir:
    """The paths of one run."""

    def __init__(self, path: Path, stem: str) -> None:
        self.path = path
        self.stem = stem  # <model>.<job id>
        self.script = path / f"{stem}.sh"
        self.manifest = path / f"{stem}.json"
        self.out = path / f"{stem}.out"
        self.err = path / f"{stem}.err"
        self.fleet = path / "fleet.jsonl"
        self.agent = path / "agent.pyz"
        self.journal = path / "registry.journal"
        self.secrets = path / "secrets"
        self.token = path / "registry.token"
        self.port_file = path / "registry.port"
        self.instances = path / "instances"
        self.nodes = path / "nodes"

    @classmethod
    def at(cls, path: Path) -> RunDir:
        """Return the run directory that exists at a path."""
        return cls(path, path.name)

    @classmethod
    def create(cls, log_dir: str, model: str, job_id: str) -> RunDir:
        """Make the run directory of a new job.

        Raises:
            AegisError: it cannot be made.
        """
        name = slug(model)
        root = Path(os.path.abspath(Path(log_dir).expanduser()))  # noqa: PTH100 - links stay as the user wrote them
        return cls.make(root / family(name) / f"{name}.{job_id}")

    @classmethod
    def make(cls, path: Path) -> RunDir:
        """Make the run directory at a path.

        Raises:
            AegisError: it cannot be made.
        """
        run = cls.at(path)
        try:
            for folder in (path, run.instances, run.nodes):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            run.remove()
            raise AegisError(
                f"the run directory cannot be made: {path}: {error.strerror}",
                hint="choose another with --log-dir",
            ) from None
        return run

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest.

        Raises:
            OSError: it cannot be written.
        """
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()
        write_atomically(self.manifest, text + "\n")

    def read_manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            NotFoundError: there is none.
        """
        try:
            return from_json(self.manifest.read_bytes(), Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise NotFoundError(f"no manifest of a job at {self.manifest}: {error}") from None

    def remove(self) -> None:
        """Remove the directory of a job that never started."""
        import shutil  # noqa: PLC0415 - start-up time

        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other runs of the family are there
            self.path.parent.rmdir()

    def remove_secrets(self) -> None:
        """Remove what only a running job needs."""
        for file in (self.secrets, self.token):
            with contextlib.suppress(OSError):
                file.unlink()


def endpoints_path(text: str, handle: str, run_dir: str) -> str:
    """Return the absolute path of an `endpoints_file`; `{job}` and `{run_dir}` stand for those of the job."""
    job = handle.partition("://")[2]
    return os.path.abspath(text.replace("{job}", job).replace("{run_dir}", run_dir))  # noqa: PTH100 - links stay


def slug(name: str) -> str:
    """Return the last part of a model's name or path, safe as a file name and in a URL."""
    last = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-")[:80] or "model"


def family(name: str) -> str:
    """Return the model's family: what stands before its size (`Llama-3.3` of `Llama-3.3-70B-Instruct`)."""
    match = re.match(r"(.+?)-\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)?[BbMm]\b", name)
    return match[1] if match else name


def close_abandoned(run: RunDir, reason: str) -> None:
    """Take away what a head that was killed left behind: its secrets and its endpoints file, which lists dead servers."""
    manifest = run.read_manifest()
    if manifest.state in ENDED:
        return
    run.remove_secrets()
    with contextlib.suppress(OSError):
        endpoints = Path(manifest.endpoints_file or "")
        # The manifest is written after each change of that file: a newer one belongs to a later job.
        if endpoints.is_file() and endpoints.stat().st_mtime <= run.manifest.stat().st_mtime:
            endpoints.unlink()
    with contextlib.suppress(OSError):
        manifest.state, manifest.reason, manifest.ended = "FAILED", reason, time.time()
        run.write_manifest(manifest)


# ------------------------------------------------------------------------------------------------ the index


def index_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder that links every job of this user to its run directory."""
    state = Path(environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/")) / ".local" / "state")
    return Path(environ.get("AEGIS_STATE_DIR") or state / "aegis") / "jobs"


def index_link(handle: str, environ: Mapping[str, str], home: str | None = None) -> str:
    """Return the link of a job in the index; `home` where it is not that of the environment."""
    folder = index_folder({**environ, "HOME": home} if home else environ)
    return str(folder / handle.replace("://", ":").replace("/", "_"))


def register(handle: str, run: RunDir, environ: Mapping[str, str]) -> None:
    """Link a job to its run directory.

    Raises:
        OSError: the link cannot be made.
    """
    link = Path(index_link(handle, environ))
    link.parent.mkdir(parents=True, exist_ok=True)
    # A job registers itself as well, while others look for it: its link stays as it is.
    with contextlib.suppress(OSError):
        if link.readlink() == run.path:
            return
    new = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    new.symlink_to(run.path)
    new.replace(link)


def known_runs(environ: Mapping[str, str]) -> dict[str, RunDir]:
    """Return the run directory of each of this user's jobs, oldest first; links to what was deleted are dropped."""
    links = _links(environ)
    return _targets({handle: links[handle] for handle in sorted(links, key=lambda each: _made(links[each]))})


def find_runs(text: str, environ: Mapping[str, str]) -> dict[str, RunDir]:
    """Return the run of a job, or one for each component of it; nothing where no job is meant.

    Raises:
        NotFoundError: more than one job may be meant.
    """
    links = _links(environ)
    return _targets({handle: links[handle] for handle in select(text, links)})


def index_handles(environ: Mapping[str, str]) -> list[str]:
    """Return the handles of all jobs in the index."""
    return list(_links(environ))


def find_run(text: str, environ: Mapping[str, str]) -> RunDir:
    """Return the run of a handle (`local://k3f9`, or `k3f9` where that is unambiguous).

    Raises:
        NotFoundError: there is none, or more than one.
    """
    runs = find_runs(text, environ)
    if not runs:
        raise unknown_job(text, _links(environ))
    if len(runs) > 1:
        raise several(text, runs)
    return next(iter(runs.values()))


def select(text: str, handles: Collection[str]) -> list[str]:
    """Return the handles that a text may mean: one, or those of all components of one job.

    Raises:
        NotFoundError: more than one job may be meant.
    """
    found = [text] if text in handles else [handle for handle in handles if is_meant(text, handle)]
    if len({job_of(handle) for handle in found}) > 1:
        raise NotFoundError(
            f"`{text}` may be any of {', '.join(sorted(found))}", hint="give the whole handle"
        )
    return sorted(found, key=component_of)


def is_meant(text: str, handle: str) -> bool:
    """Tell whether a text means a job: its handle or id, of PBS up to any label, of several components without theirs."""
    scheme, given, wanted = text.rpartition("://")
    own, _, known = handle.partition("://")
    if given and scheme != own:
        return False
    wanted, plus, component = wanted.partition("+")
    known, _, part = known.partition("+")
    if plus and component != part:
        return False
    short, long = sorted((wanted, known), key=len)
    return wanted == known or bool(own == "pbs" and short and long.startswith(f"{short}."))


def job_of(handle: str) -> str:
    """Return the handle of the whole job."""
    return handle.partition("+")[0]


def file_id(handle: str) -> str:
    """Return the id of a job as it stands in file names: `123.server+1` of `pbs://123.server.site+1`."""
    job, plus, component = handle.partition("://")[2].partition("+")
    return f"{'.'.join(job.split('.')[:2])}{plus}{component}"


def component_of(handle: str) -> int:
    """Return which component of its job a handle names; 0 where it names none."""
    number = handle.partition("+")[2]
    return int(number) if number.isdecimal() else 0


def unknown_job(text: str, handles: Collection[str]) -> NotFoundError:
    """Return the error for a text that means no job."""
    scheme, given, _ = text.rpartition("://")
    near = [handle for handle in handles if not given or handle.startswith(f"{scheme}://")]
    known = [*near, *(handle.partition("://")[2] for handle in near)]
    hint = did_you_mean(text, known) or "`aegis status` lists the jobs"
    return NotFoundError(f"there is no job `{text}`", hint=hint)


def several(text: str, handles: Collection[str]) -> NotFoundError:
    """Return the error for a text that means a job of several components where one is needed."""
    return NotFoundError(f"`{text}` has {len(handles)} components", hint=f"name one of {', '.join(handles)}")


def forget(paths: Collection[Path], environ: Mapping[str, str]) -> None:
    """Take run directories out of the index."""
    gone = {str(path) for path in paths}
    for link in _links(environ).values():
        with contextlib.suppress(OSError):
            if os.readlink(link) in gone:  # noqa: PTH115 - text in, text out
                os.unlink(link)  # noqa: PTH108 - as above


def _links(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the link of every job in the index, by handle."""
    try:
        with os.scandir(index_folder(environ)) as entries:
            return {
                entry.name.replace(":", "://", 1): entry.path
                for entry in entries
                if entry.is_symlink() and not entry.name.startswith(".")
            }
    except OSError:
        return {}


def _made(link: str) -> float:
    try:
        return os.lstat(link).st_mtime
    except OSError:  # somebody dropped it meanwhile
        return 0.0


def _targets(links: Mapping[str, str]) -> dict[str, RunDir]:
    return {handle: run for handle, link in links.items() if (run := _target(link))}


def _target(link: str) -> RunDir | None:
    """Return the run that a link leads to; a link to what was deleted is dropped."""
    try:
        path = Path(link).readlink()
    except OSError:
        return None
    if path.is_dir():
        return RunDir.at(path)
    if path.parent.is_dir():  # not merely a file system that is away
        with contextlib.suppress(OSError):
            os.unlink(link)  # noqa: PTH108 - text in
    return None
