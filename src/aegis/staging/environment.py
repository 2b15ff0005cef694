"""A conda-pack tarball: decompressed once, on the head; staged as files; made to fit its place once on each node.

Every node has the environment at the same path, which follows from the content, so that two jobs share it and a newer
tarball never mixes with an older one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aegis.errors import AegisError, ConfigError
from aegis.staging.node.places import Lock, remove
from aegis.staging.scan import shown

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

HELPERS: Final = {  # by the end of the name: what decompresses it with all cores, where that is installed
    ".gz": "pigz",
    ".tgz": "pigz",
    ".bz2": "lbzip2",
}
READY: Final = ".aegis-unpacked"  # in an environment whose paths are those of its node


def content_key(tarball: str) -> str:
    """Return the hash of a file's content, 16 hexadecimal digits.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with open(tarball, "rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise ConfigError(f"conda_env cannot be read: {shown(tarball)}: {error.strerror}") from None


def unpack_argv(tarball: str, folder: str, installed: Container[str] = ()) -> list[str]:
    """Return the command that unpacks a tarball; a name with a colon is no other machine.

    Args:
        tarball: absolute.
        folder: where to.
        installed: the programs of `HELPERS` that there are.
    """
    helper = next((name for end, name in HELPERS.items() if tarball.endswith(end)), None)
    words = ["tar", "--force-local", "--no-same-owner", "-x"]
    if helper is not None and helper in installed:
        words.append(f"--use-compress-program={helper}")
    return [*words, "-f", tarball, "-C", folder]


@contextmanager
def unpacked(tarball: str, near: str, key: str) -> Iterator[str]:
    """Unpack a tarball for a while; who else wants to meanwhile waits.

    The directory has the same name each time: a list of what is staged names its source, and is to be the same, too.

    Args:
        tarball: absolute.
        near: a folder of this machine with room for the whole environment.
        key: of the content.

    Yields:
        The directory that holds it.

    Raises:
        AegisError: it cannot be unpacked, or holds no environment.
    """
    folder = f"{near}/aegis-unpacking-{os.getuid()}-{key}"
    lock = Lock(os.fsencode(f"{folder}.lock"))
    try:
        lock.take(wait=True)
        remove(os.fsencode(folder))  # of a run that was killed
        os.mkdir(folder, 0o700)
    except OSError as error:
        lock.drop()
        raise AegisError(
            f"{shown(folder)}: {error.strerror}; {shown(tarball)} is to be unpacked there"
        ) from None
    try:
        _unpack(tarball, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.drop()


def ready_lines(environment: str) -> list[str]:
    """Return the shell lines that make a staged environment fit its node, once, and activate it.

    `conda-unpack` writes the environment's own path into its files. It runs on the environment's own Python: a node may
    have no other.
    """
    import shlex  # noqa: PLC0415 - only where a conda environment is named

    refusal = 'echo "aegis: cannot start: $conda_env'
    return [
        "export PYTHONNOUSERSITE=1",  # what the user has in ~/.local is made for another Python
        f"conda_env={shlex.quote(environment)}",
        f'[ -d "$conda_env" ] || {{ {refusal} is not staged here" >&2; exit 127; }}',
        # who owns the folder around it could put another in its place
        f'[ -O "$conda_env" ] && [ -O "${{conda_env%/*}}" ] || {{ {refusal} is not ours" >&2; exit 127; }}',
        "(",
        "  flock 9",
        f'  if [ ! -e "$conda_env/{READY}" ]; then',
        '    { [ ! -f "$conda_env/bin/conda-unpack" ] ||',
        '      "$conda_env/bin/python" "$conda_env/bin/conda-unpack"; } &&',
        f'    touch -- "$conda_env/{READY}" || exit 1',
        "  fi",
        f') 9>"$conda_env.lock" || {{ {refusal} could not be unpacked" >&2; exit 1; }}',
        '. "$conda_env/bin/activate" || exit 127',
    ]


def _unpack(tarball: str, folder: str) -> None:
    installed = {name for name in HELPERS.values() if shutil.which(name)}
    argv = unpack_argv(tarball, folder, installed)
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise AegisError(f"{argv[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[:1] or ["no reason given"]
        raise AegisError(f"{shown(tarball)} cannot be unpacked: {last[0]}")
    if not os.path.isfile(f"{folder}/bin/activate"):
        raise ConfigError(
            f"{shown(tarball)} holds no environment: it has no bin/activate",
            hint="make it with conda-pack, or name the environment's directory",
        )
