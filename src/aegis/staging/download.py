"""`download_weights`: models of the Hugging Face Hub, fetched by the engine environment's own `hf` onto this machine.

`hf` resumes what was cut off, asks `HF_ENDPOINT`, and reads the token from its environment, never from its arguments.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis.errors import AegisError, ConfigError
from aegis.staging.scan import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LOG_SECONDS: Final = 10.0  # between two lines of progress
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE: Final = frozenset({"1", "on", "yes", "true"})  # as huggingface_hub reads it
BEGUN: Final = ".aegis-downloading"  # in a `local_dir` until all is there: the folder alone says nothing
TAIL: Final = 2000  # characters of the last words that are kept


def read_token(environ: Mapping[str, str]) -> str | None:
    """Return the hub's token: `HF_TOKEN`, or what is in the file that `HF_TOKEN_PATH` names.

    Raises:
        ConfigError: the file cannot be read, or others may read it.
    """
    if token := environ.get("HF_TOKEN"):
        return token
    path = environ.get("HF_TOKEN_PATH")
    if not path:
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            token = stream.read().strip()
    except OSError as error:
        raise ConfigError(f"HF_TOKEN_PATH cannot be read: {shown(path)}: {error.strerror}") from None
    if mode & OTHERS:
        raise ConfigError(f"{shown(path)} may be read by others", hint=f"chmod 600 {shown(path)}")
    return token or None


def download_argv(program: str, model: str, local_dir: str | None) -> list[str]:
    """Return the command that fetches a model into a directory, or into the cache below `HF_HOME`."""
    return [program, "download", model, *(["--local-dir", local_dir] if local_dir else [])]


def download(
    model: str,
    *,
    program: str,
    hf_home: str,
    local_dir: str | None,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """Fetch a model; what is there is not fetched again.

    Args:
        model: its name on the hub.
        program: the `hf` to run.
        hf_home: of this machine.
        local_dir: where to, instead of the cache of `hf_home`.
        environ: has the token, if there is one, and `HF_ENDPOINT`.
        tell: gets a line of progress every 10 s.

    Raises:
        AegisError: it cannot be fetched; offline, what is missing is named.
    """
    place = local_dir or f"{hf_home}/hub/models--{model.replace('/', '--')}"
    if any(environ.get(name, "").lower() in TRUE for name in OFFLINE):
        _be_there(model, place)
        return
    token = read_token(environ)
    own = {"HF_HOME": hf_home, **({"HF_TOKEN": token} if token else {})}
    argv = download_argv(program, model, local_dir)
    try:
        if local_dir:
            os.makedirs(local_dir, exist_ok=True)
            with open(f"{local_dir}/{BEGUN}", "wb"):
                pass
    except OSError as error:
        raise AegisError(
            f"{model} cannot be downloaded to {shown(local_dir or '')}: {error.strerror}"
        ) from None
    try:
        with subprocess.Popen(
            argv,
            env={**environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            last = _follow(process, lambda line: tell(f"downloading {model}: {line}"))
    except OSError as error:
        raise AegisError(
            f"{program} cannot be run ({error.strerror}), and {model} is to be downloaded",
            hint="install huggingface_hub beside the engine, or set `model_source`",
        ) from None
    if process.returncode:
        said = f"{model} cannot be downloaded: {last or 'no reason given'}"
        raise AegisError(said, hint=f"missing: {'; '.join(missing(place)[:3])}" if missing(place) else None)
    if local_dir:
        with contextlib.suppress(OSError):  # another job that fetches the same has removed it
            os.unlink(f"{local_dir}/{BEGUN}")


def missing(place: str) -> list[str]:
    """Return what a model's directory, or entry of a cache, lacks; [] where nothing is known to be missing."""
    folder = _folder(place)
    if folder is None or not os.path.exists(f"{folder}/config.json"):
        return [f"{shown(place)} holds no config.json"]
    lacking: list[str] = []
    for name in INDEXES:
        try:
            with open(f"{folder}/{name}", "rb") as stream:
                index = msgspec.json.decode(stream.read(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            continue
        shards = index.get("weight_map")
        names = {str(each) for each in shards.values()} if isinstance(shards, dict) else set()
        lacking += sorted(each for each in names if not os.path.exists(f"{folder}/{each}"))
    if not lacking and os.path.exists(f"{place}/{BEGUN}"):
        return [f"the rest of {shown(place)}, whose download was cut off"]
    return [f"{shown(folder)}/{shown(each)}" for each in lacking]


def _be_there(model: str, place: str) -> None:
    """Refuse to go on offline without the whole model."""
    lacking = missing(place)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""  # noqa: PLR2004 - as many as are named
        raise AegisError(
            f"{model} is to be downloaded, and HF_HUB_OFFLINE is set; missing: {'; '.join(lacking[:3])}{more}",
            hint="download it on a machine with a network (`hf download`), and set `model_source`",
        )


def _folder(place: str) -> str | None:
    """Return the directory that holds the files: the place, or its last snapshot."""
    snapshots = f"{place}/snapshots"
    if not os.path.isdir(snapshots):
        return place if os.path.isdir(place) else None
    try:
        with open(f"{place}/refs/main", encoding="utf-8", errors="replace") as stream:
            main = stream.read().strip()
    except OSError:
        main = ""
    there = sorted(os.listdir(snapshots))
    chosen = main if main in there else next(reversed(there), None)
    return f"{snapshots}/{chosen}" if chosen else None


def _follow(process: subprocess.Popen[bytes], tell: Callable[[str], None]) -> str:
    """Pass the progress on, a line now and then; return the last line."""
    assert process.stderr is not None  # noqa: S101 - we asked for it
    said, text = time.monotonic(), ""
    while chunk := os.read(process.stderr.fileno(), 65536):
        text = (text + chunk.decode(errors="replace"))[-TAIL:]
        if time.monotonic() - said > LOG_SECONDS and (line := _last_line(text)):
            said = time.monotonic()
            tell(line)
    return _last_line(text)


def _last_line(text: str) -> str:
    """Return the last line with something in it; a progress bar writes over its line again and again."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return "".join(char for char in lines[-1] if char.isprintable()) if lines else ""
