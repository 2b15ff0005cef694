"""Where the facts of a model can be read: its directory, or an entry of a Hugging Face cache."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.preflight.files import Ask
from aegis.preflight.shape import parse_config
from aegis.preflight.weights import HEADER_LIMIT, INDEX_LIMIT, INDEXES, Weights, header_kinds, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from aegis.preflight.files import Files
    from aegis.preflight.shape import Shape
    from aegis.spec.deployment import Deployment, ModelEntry
    from aegis.spec.platform import Platform

CONFIG = "config.json"
CONFIG_LIMIT = 1024 * 1024
REF_LIMIT = 256
MOST_SNAPSHOTS = 8


class Candidate(Struct, frozen=True):
    """A directory that may hold a model or a cache entry of it."""

    path: str
    loaded: bool  # the engine reads it; else only the facts of the same model can be read there


class Source(Struct, frozen=True):
    """A model as it was found."""

    folder: str
    loaded: bool
    shape: Shape | None
    weights: Weights


def chosen_snapshot(main: str, there: Collection[str]) -> str | None:
    """Return the snapshot of a cache entry that is used: the one that its branch names if it is there, else the last.

    Args:
        main: what `refs/main` says.
        there: the complete snapshots, those that hold a config.json.
    """
    return main if main in there else max(there, default=None)


def cache_entry(model: str) -> str:
    """Return the name of a model's directory in a Hugging Face cache."""
    return f"models--{model.replace('/', '--')}"


def is_path(model: str) -> bool:
    """Tell whether `model` names a directory, not a model of the hub."""
    return model.startswith(("/", ".", "~"))


def candidates(
    entry: ModelEntry,
    deployment: Deployment,
    platform: Platform,
    environ: Mapping[str, str],
    inside: Callable[[str], str],
) -> list[Candidate]:
    """Return where to look for a model, the best first; `inside` makes a path of the job absolute."""
    found = []
    if entry.model_source and not deployment.skip_staging:
        found.append(Candidate(inside(entry.model_source), loaded=True))
    found.append(Candidate(inside(entry.model), loaded=True))
    if is_path(entry.model):
        return found
    name = cache_entry(entry.model)
    found.append(Candidate(inside(f"{deployment.hf_home}/hub/{name}"), loaded=True))
    if platform.weights_dir:
        last = posixpath.basename(entry.model)  # vec-inf's directories of weights have no organisations
        found += [Candidate(f"{platform.weights_dir}/{each}", loaded=False) for each in (name, last)]
    home = environ.get("HF_HOME") or "~/.cache/huggingface"
    found.append(Candidate(inside(f"{environ.get('HF_HUB_CACHE') or f'{home}/hub'}/{name}"), loaded=False))
    return found


def find_sources(files: Files, wanted: Sequence[Sequence[Candidate]]) -> list[Source | None]:
    """Return the first candidate of each model that holds a config.json; a far machine is asked three times at most."""
    paths = dict.fromkeys(candidate.path for each in wanted for candidate in each)
    files.expect(ask for path in paths for ask in questions(path))
    folders = dict.fromkeys(folder for path in paths for folder in _folders(files, path))
    files.expect(ask for folder in folders for ask in _about(folder))
    sources = [_first(files, each) for each in wanted]
    files.expect(
        Ask("read", f"{source.folder}/{source.weights.first}", HEADER_LIMIT)
        for source in sources
        if source and source.weights.first
    )
    return [source and _with_kinds(files, source) for source in sources]


def questions(path: str) -> Iterator[Ask]:
    """Yield what is asked of a candidate first."""
    yield Ask("look", path)
    yield Ask("names", f"{path}/snapshots")
    yield Ask("read", f"{path}/refs/main", REF_LIMIT)


def snapshot(files: Files, path: str) -> str | None:
    """Return the directory that holds the model: the candidate itself, or a snapshot; None: no snapshot is complete."""
    folders = _folders(files, path)
    if folders == [path]:
        return path
    there = [posixpath.basename(folder) for folder in folders if _config(files, folder)]
    name = chosen_snapshot(_main(files, path), there)
    return f"{path}/snapshots/{name}" if name else None


def _folders(files: Files, path: str) -> list[str]:
    """Return the directories that may hold a candidate's config.json."""
    main = _main(files, path)
    names = filter(
        str.isprintable, files.names(f"{path}/snapshots")
    )  # they are shown, and may be somebody else's
    last = sorted(names, key=lambda name: (name == main, name))[-MOST_SNAPSHOTS:]
    return [f"{path}/snapshots/{name}" for name in last] or [path]


def _main(files: Files, path: str) -> str:
    return files.read(f"{path}/refs/main", REF_LIMIT).decode(errors="replace").strip()


def _config(files: Files, folder: str) -> bytes:
    return files.read(f"{folder}/{CONFIG}", CONFIG_LIMIT)


def _about(folder: str) -> Iterator[Ask]:
    yield Ask("names", folder)
    yield Ask("read", f"{folder}/{CONFIG}", CONFIG_LIMIT)
    yield from (Ask("read", f"{folder}/{name}", INDEX_LIMIT) for name in INDEXES)


def _first(files: Files, wanted: Sequence[Candidate]) -> Source | None:
    """Return the first candidate that holds a config.json."""
    for candidate in wanted:
        folder = snapshot(files, candidate.path)
        if folder and (content := _config(files, folder)):
            indexes = (files.read(f"{folder}/{name}", INDEX_LIMIT) for name in INDEXES)
            weights = weights_of(files.names(folder), next(filter(None, indexes), b""))
            return Source(folder, candidate.loaded, parse_config(content), weights)
    return None


def _with_kinds(files: Files, source: Source) -> Source:
    """Return a source with the data types that its first file of weights tells."""
    if not source.weights.first:
        return source
    content = files.read(f"{source.folder}/{source.weights.first}", HEADER_LIMIT)
    weights = msgspec.structs.replace(source.weights, kinds=header_kinds(content))
    return msgspec.structs.replace(source, weights=weights)
