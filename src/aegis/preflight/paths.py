"""What the deployment names must be there: directories, environments, programs; and ports that a user may have."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.engines import engine
from aegis.errors import Problem
from aegis.placement import INTERNAL_OFFSET, LAST_PORT, PORT_STRIDE
from aegis.preflight.files import Ask
from aegis.preflight.finding import Finding, place_of, quantity
from aegis.preflight.source import is_path, snapshot
from aegis.preflight.weights import shown
from aegis.spec.deployment import GATEWAY_PORT, PORT_START, REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aegis.preflight.files import Files
    from aegis.preflight.source import Source
    from aegis.spec.resolve import Resolved

PRIVILEGED = 1024  # ports below belong to root
USUAL_PORTS = {"port_start": PORT_START, "registry_port": REGISTRY_PORT, "gateway_port": GATEWAY_PORT}


class Job(Struct, frozen=True):
    """A deployment, and where it is submitted from."""

    resolved: Resolved
    files: Files
    environ: Mapping[str, str]  # of the user

    def inside(self, path: str) -> str:
        """Return a path as the job means it: relative ones start from its working directory."""
        if path.startswith(("/", "~")):
            return self.files.absolute(path)
        return posixpath.normpath(posixpath.join(self.work_dir, path))

    @property
    def token_file(self) -> str:
        """Where servers find the token of a login."""
        return f"{self.inside(self.resolved.deployment.hf_home)}/token"

    @property
    def work_dir(self) -> str:
        """The working directory of the job."""
        return self.files.absolute(self.resolved.deployment.work_dir or ".")


def path_questions(job: Job) -> Iterator[Ask]:
    """Yield what `paths` will ask."""
    deployment = job.resolved.deployment
    log_dir = job.inside(deployment.log_dir)
    named = [job.work_dir, log_dir, posixpath.dirname(job.inside(deployment.endpoints_file))]
    while log_dir not in ("/", ""):
        log_dir = posixpath.dirname(log_dir)
        named.append(log_dir)
    named += [
        job.inside(deployment.endpoints_file),
        job.token_file,
        *(path for _, path, _ in _environments(job)),
    ]
    for path in dict.fromkeys(named):
        yield Ask("look", path)


def paths(job: Job, sources: Sequence[Source | None]) -> list[Finding]:
    """Return what is not there, or cannot be written."""
    return [
        *_written(job),
        *_needed(job),
        *(found for index, source in enumerate(sources) for found in _model(job, index, source)),
    ]


def _written(job: Job) -> Iterator[Finding]:
    """Yield places where the job cannot write."""
    if job.files.is_dir(job.work_dir):
        yield from _endpoints(job)
        yield from _logs(job)
        return
    where = place_of(job.resolved, "work_dir")
    said = f"the working directory is not there: {job.work_dir}"  # and so is nothing that lies in it
    yield Finding(Problem(where, said, "make it, or choose another"), certain=True)


def _endpoints(job: Job) -> Iterator[Finding]:
    path = job.inside(job.resolved.deployment.endpoints_file)
    folder = posixpath.dirname(path)
    if "{" in folder:  # of this job alone, and made for it
        return
    hint = "choose another with --endpoints-file"
    if not job.files.is_dir(folder):
        said = f"the folder of the endpoints file is not there: {folder}"
        hint = f"make it, or {hint}"
    elif not job.files.writable(folder):
        said = f"the folder of the endpoints file cannot be written: {folder}"
    elif job.files.is_dir(path):
        said = f"the endpoints file is a directory: {path}"
    else:
        return
    yield Finding(Problem(place_of(job.resolved, "endpoints_file"), said, hint), certain=True)


def _logs(job: Job) -> Iterator[Finding]:
    folder = log_dir = job.inside(job.resolved.deployment.log_dir)
    while not job.files.exists(folder) and folder not in ("/", ""):
        folder = posixpath.dirname(folder)
    if not job.files.is_dir(folder):
        what = "is no directory"
    elif not job.files.writable(folder):
        what = "cannot be written"
    else:
        return
    said = f"{folder} {what}, so there is no place for the logs in {log_dir}"
    where = place_of(job.resolved, "log_dir")
    yield Finding(Problem(where, said, "choose another with --log-dir"), certain=True)


def _needed(job: Job) -> Iterator[Finding]:
    """Yield environments and programs that are not there; on a cluster the nodes may have them all the same."""
    here = job.resolved.platform.launcher == "local"
    hint = "make it, or name another" if here else "make it, or --force if only the nodes have it"
    gone: list[str] = []
    for key, path, what in _environments(job):
        if job.files.exists(path) or any(path.startswith(f"{parent}/") for parent in gone):
            continue
        gone.append(path)
        where = place_of(job.resolved, key)
        yield Finding(Problem(where, f"{what} is not there: {path}", hint), certain=here)


def _environments(job: Job) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the path and the name of everything that servers are started with."""
    deployment = job.resolved.deployment
    if deployment.venv:
        venv = job.inside(deployment.venv)
        yield "venv", venv, "the virtual environment"
        kinds = dict.fromkeys(entry.engine for entry in deployment.models if entry.engine != "sim")
        for kind in () if deployment.image else kinds:
            program = engine(kind).program
            yield "venv", f"{venv}/bin/{program}", f"the program `{program}` of the virtual environment"
    if deployment.conda_env:
        yield "conda_env", job.inside(deployment.conda_env), "the conda environment"
    if deployment.image and "://" not in deployment.image:
        yield "image", job.inside(deployment.image), "the image"
    if deployment.prebuilt:
        yield "prebuilt", job.inside(deployment.prebuilt), "the MPI program of staging"
    if deployment.aegis_env:
        home = job.files.absolute(deployment.aegis_env)
        yield "aegis_env", home, "the environment of aegis"
        yield "aegis_env", f"{home}/bin/python", "the program `python` of the environment of aegis"
    for bind in deployment.bind:
        if not bind.startswith("$"):  # a variable of the job, such as $SLURM_TMPDIR
            yield "bind", job.inside(bind.partition(":")[0]), "the path to bind"


def _model(job: Job, index: int, source: Source | None) -> Iterator[Finding]:
    """Yield what is wrong with the directory that a model's weights are loaded from."""
    deployment = job.resolved.deployment
    entry = deployment.models[index]
    if entry.model_source and not deployment.skip_staging:
        key, path = "model_source", job.inside(entry.model_source)
    else:
        key, path = "model", job.inside(entry.model)
    if entry.engine == "sim" or (key == "model" and not is_path(entry.model)):
        return
    certain = True
    if not job.files.is_dir(path):
        said = f"the weights of {entry.name} are not there: {path}"
        hint = "give the directory that holds config.json, or a Hugging Face cache entry (models--ORG--NAME)"
        if entry.download_weights:
            return
    elif snapshot(job.files, path) is None:
        said = f"{path} is a Hugging Face cache entry without a complete snapshot"
        hint = "download the model again, or name the snapshot's directory"
    elif source is None or not source.loaded:
        said, certain = f"{path} holds no config.json", False
        hint = "give the directory of a model in Hugging Face's format"
    elif missing := source.weights.missing:
        names = f"{shown(missing)} in {source.folder}"
        said, certain = (
            f"{quantity(len(missing), 'file')} of weights of {entry.name} not there: {names}",
            False,
        )
        hint = "download the model again"
    else:
        return
    where = place_of(job.resolved, f"models[{index}].{key}")
    yield Finding(Problem(where, said, hint), certain=certain)


def ports(resolved: Resolved, nodes: int) -> Iterator[Finding]:
    """Yield ports that servers cannot have: below 1024, or beyond the last one.

    A node has at least its share of the servers, one port each and, further up, a block of internal ports.
    """
    deployment = resolved.deployment
    given = {name: getattr(deployment, name) for name in USUAL_PORTS}
    for key, port in given.items():
        if port is not None and port < PRIVILEGED:
            said = f"`{key}` {port} is below {PRIVILEGED}, where only root may serve"
            hint = f"use {USUAL_PORTS[key]}"
            yield Finding(Problem(place_of(resolved, key), said, hint), certain=False)
    servers = -(-sum(entry.instances for entry in deployment.models) // max(1, nodes))
    needed = max(INTERNAL_OFFSET, servers) + servers * PORT_STRIDE
    if deployment.port_start and deployment.port_start + needed - 1 > LAST_PORT:
        span = f"from port {deployment.port_start} on need ports up to {deployment.port_start + needed - 1}"
        said = f"{quantity(servers, 'server')} on a node {span}, beyond {LAST_PORT}"
        best = LAST_PORT + 1 - needed
        hint = f"use a port_start of at most {best}" if best >= PRIVILEGED else "put fewer servers on a node"
        yield Finding(Problem(place_of(resolved, "port_start"), said, hint), certain=True)
