"""The environment that an engine starts in: modules, then conda, a virtual environment or a container. Pure."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.fleet.agent.processes import MARK
from aegis.staging.environment import ready_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.spec.deployment import Deployment
    from aegis.spec.platform import Platform

FOUND_BY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # what a shell takes for the name of a variable
# Apptainer reads both and prefers its own; Singularity reads only its own.
INSIDE = ("APPTAINERENV_", "SINGULARITYENV_")
# Both makes would let a shell evaluate what is in the variables: `$(...)` in a value would run.
AS_THEY_ARE = {"APPTAINER_NO_EVAL": "1", "SINGULARITY_NO_EVAL": "1"}
VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
SOCKETS = "/tmp"  # noqa: S108 - where engines keep their sockets, as seen by all members of an instance on a node


def expanded(path: str) -> Path:
    """Return a path with its `~` replaced, where that user is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


# ------------------------------------------------------------------------------------------- shell


def with_setup(argv: Sequence[str], setup: Sequence[str]) -> list[str]:
    """Return the command behind its set-up lines; arguments never pass through the shell's eyes."""
    if not setup:
        return list(argv)
    refusal = 'echo "aegis: cannot run $1: not found, or not executable" >&2'
    last = ["shopt -s execfail", 'exec "$@"', refusal, "exit 127"]
    return ["bash", "-lc", "\n".join([*setup, *last]), "aegis", *argv]


def setup_lines(deployment: Deployment, platform: Platform, staged: str | None = None) -> list[str]:
    """Return the shell lines before the engine: the site's, the modules, then the environment that was named.

    Args:
        deployment: what is served.
        platform: the site.
        staged: where the conda-pack tarball was unpacked to on the nodes.
    """
    lines = [*platform.setup, *(line for name in deployment.modules for line in module_lines(name))]
    if staged:
        lines += ready_lines(staged)
    elif deployment.conda_env:
        lines += conda_lines(deployment.conda_env, platform.node.local_path)
    if deployment.venv and lines:  # a login shell and modules put their own folders first
        import shlex  # noqa: PLC0415 - only where lines are quoted

        lines.append(f'export PATH={shlex.quote(str(expanded(deployment.venv) / "bin"))}:"$PATH"')
    return lines


def module_lines(name: str) -> list[str]:
    """Return the shell lines that load a module, or end the start."""
    import shlex  # noqa: PLC0415 - only where a module is named

    quoted = shlex.quote(name)
    return [f"module load {quoted} || {{", *_refusal("module ", quoted, " cannot be loaded"), "}"]


def conda_lines(environment: str, local_path: str) -> list[str]:
    """Return the shell lines that activate a conda environment.

    A directory is activated where it is; a conda-pack tarball is unpacked once per node, under a lock, in a folder that
    nobody else may write, at a path of its own per content stamp (size and time). What is not complete is not used.
    """
    import shlex  # noqa: PLC0415 - only where a conda environment is named

    return [
        "export PYTHONNOUSERSITE=1",  # what the user has in ~/.local is made for another Python
        f"conda_env={shlex.quote(environment)}",
        'if [ ! -d "$conda_env" ]; then',
        '  [ -f "$conda_env" ] || { echo "aegis: cannot start: no conda environment at $conda_env" >&2; exit 127; }',
        "  stamp=$(stat -c '%s-%Y-%n' -- \"$conda_env\" | cksum | cut -d' ' -f1)",
        f'  private="{local_path}"/aegis-env-$(id -u)',  # from the profile: may name $USER
        '  mkdir -m 700 -p -- "$private" && [ -O "$private" ] && [ ! -L "$private" ] ||',
        '    { echo "aegis: cannot start: $private is not ours" >&2; exit 127; }',
        '  unpacked="$private/$stamp"',
        "  (",
        "    flock 9",
        '    if [ ! -e "$unpacked/.complete" ]; then',
        '      rm -rf -- "$unpacked" && mkdir -- "$unpacked" && tar --force-local -xf "$conda_env" -C "$unpacked" &&',
        '        { [ ! -x "$unpacked/bin/conda-unpack" ] || "$unpacked/bin/conda-unpack"; } &&',
        '        touch -- "$unpacked/.complete" || { rm -rf -- "$unpacked"; exit 1; }',
        "    fi",
        '  ) 9>"$unpacked.lock" || { echo "aegis: cannot start: $conda_env could not be unpacked" >&2; exit 1; }',
        "  conda_env=$unpacked",
        "fi",
        '. "$conda_env/bin/activate" || exit 127',
    ]


def _refusal(before: str, quoted: str, after: str) -> list[str]:
    return [f'  echo "aegis: cannot start: {before}"{quoted}"{after}" >&2', "  exit 127"]


# ------------------------------------------------------------------------------------------- containers


def container_command(
    argv: Sequence[str],
    deployment: Deployment,
    platform: Platform,
    work_dir: str,
    folders: Iterable[str],
    *,
    staged: str | None = None,
) -> list[str]:
    """Return the command as it runs in the deployment's image.

    Nothing of the host's environment enters but what `container_environment` and `container_lines` give: the site's
    modules and the user's own Python packages are made for other programs. File systems are shared as the site has it
    (the home directory, /dev), so that caches and shared memory are those of a server outside.
    """
    image = staged or deployment.image or ""
    mounts = dict.fromkeys([work_dir, str(expanded(deployment.hf_home)), SOCKETS, *folders])
    mounts.pop("/", None)  # of that a container has its own
    words = [platform.container, "exec", "--cleanenv", *platform.container_args]
    for folder in mounts:
        words += ["--mount", f"type=bind,{_field('source', folder)},{_field('destination', folder)}"]
    for item in deployment.bind:
        if not VARIABLE.search(item):  # else `container_lines` has it
            words += ["--bind", item]
    where = image if "://" in image else os.path.join(work_dir, expanded(image))  # noqa: PTH118 - text
    return [*words, "--pwd", work_dir, where, *argv]


def container_environment(inside: Mapping[str, str], outside: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the container's command.

    Args:
        inside: what the engine is to see. Each has a variable of its own, so that commas, quotes and lines arrive whole.
        outside: what the host's side needs.
    """
    inside = {"PYTHONNOUSERSITE": "1", **inside}
    taken = {name: value for name, value in inside.items() if FOUND_BY_NAME.fullmatch(name)}
    return {
        **outside,
        **AS_THEY_ARE,
        **{prefix + name: value for prefix in INSIDE for name, value in taken.items()},
    }


def container_lines(deployment: Deployment, platform: Platform, names: Iterable[str]) -> list[str]:
    """Return the shell lines before a container: what is to be bound exists, and late values are passed.

    Args:
        deployment: its `hf_home` is made where it is missing; its binds may name variables of the job.
        platform: the site.
        names: variables that the agent sets: its mark, the devices, the secrets. They are in no command.
    """
    import shlex  # noqa: PLC0415 - only for containers

    home = shlex.quote(str(expanded(deployment.hf_home)))
    passed = " ".join(name for name in dict.fromkeys((MARK, *names)) if FOUND_BY_NAME.fullmatch(name))
    exports = " ".join(f'"{prefix}$name=${{!name}}"' for prefix in INSIDE)
    return [
        f"mkdir -p -- {home} || {{",
        *_refusal("", home, " cannot be made (hf_home)"),
        "}",
        f"for name in {passed}; do",
        f'  [ -z "${{!name+set}}" ] || export {exports}',
        "done",
        *_variable_binds(deployment, platform),
    ]


def _variable_binds(deployment: Deployment, platform: Platform) -> list[str]:
    """Return the lines that bind paths such as `$SLURM_TMPDIR:$HOME/.cache`, which only the node can tell."""
    items = [item for item in deployment.bind if VARIABLE.search(item)]
    if not items:
        return []
    lines = []
    for name in dict.fromkeys(found for item in items for found in VARIABLE.findall(item)):
        lines += [
            f'[ -n "${{{name}:-}}" ] || {{',
            *_refusal("", name, ", which bind names, is not set here"),
            "}",
        ]
    # everything but the variables stands as it is written
    text = ",".join(map(_quoted_around, items))
    variable = f"{platform.container.upper()}_BIND"
    return [*lines, f'export {variable}="${{{variable}:+${variable},}}"{text}']


def _quoted_around(item: str) -> str:
    """Return a shell word in which only the variables are left open."""
    import shlex  # noqa: PLC0415 - only for containers

    parts = VARIABLE.split(item)  # text, name, text, name, ..., text
    return "".join(
        f'"${part}"' if index % 2 else shlex.quote(part) if part else "" for index, part in enumerate(parts)
    )


def _field(key: str, value: str) -> str:
    """Return `key=value` as one field of comma-separated values."""
    text = f"{key}={value}"
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


# ------------------------------------------------------------------------------------------- proxies


def proxies(platform: Platform, given: str, names: Iterable[str]) -> dict[str, str]:
    """Return the site's proxies, and the names that must never go through one.

    Args:
        platform: the site.
        given: the `no_proxy` of the environment.
        names: of the nodes of this job.
    """
    network = platform.network
    result: dict[str, str] = {}
    if network.http_proxy:
        result |= dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), network.http_proxy
        )
    if network.all_proxy:
        result |= dict.fromkeys(("all_proxy", "ALL_PROXY"), network.all_proxy)
    direct = [*filter(None, given.split(",")), "localhost", "127.0.0.1", *network.no_proxy]
    if network.host_suffix:
        direct.append(network.host_suffix)
    joined = ",".join(dict.fromkeys([*direct, *names]))
    return {**result, "no_proxy": joined, "NO_PROXY": joined}
