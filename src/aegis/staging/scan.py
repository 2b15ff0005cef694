"""A source as it is on the disk -> the item to stage. Everything that is wrong with it is found at once, and named.

Links within the tree stay links. A link that leads out of it is replaced by what it leads to, for a node may not see
that. Of an entry of a Hugging Face cache one snapshot is taken, with the blobs that it links to and the refs that name it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.staging.listing import Directory, File, Item, Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Record = TypeVar("Record", Directory, File, Link)
OWN: Final = ".aegis-"  # how names begin that only staging makes
MOST_SHOWN: Final = 30  # problems; the rest is counted
KINDS: Final = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)


class Snapshot(NamedTuple):
    """A snapshot of a Hugging Face cache entry."""

    entry: str  # .../models--ORG--NAME
    revision: str


class _Base(NamedTuple):
    """A directory of the disk, and what it is in the item: links that stay inside of it stay links."""

    real: str
    path: str


class _Folder(NamedTuple):
    """A directory that is still to be read."""

    path: str  # relative to the destination; "" the destination itself
    source: str  # relative to the item's source
    bases: tuple[_Base, ...]  # the innermost last


class _Found(Struct):
    """What a scan has found so far."""

    root: str
    directories: dict[str, Directory] = {}
    files: dict[str, File] = {}
    links: dict[str, Link] = {}
    problems: list[str] = []

    def item(self, destination: str, hosts: Iterable[str]) -> Item:
        """Return the item; its records are sorted, so that the same tree always gives the same list."""
        if self.problems:
            raise _refusal(self.root, self.problems)
        return Item(
            source=self.root,
            destination=destination,
            directories=_sorted(self.directories),
            files=_sorted(self.files),
            links=_sorted(self.links),
            hosts=tuple(hosts),
        )


def scan(source: str, destination: str, hosts: Iterable[str] = ()) -> Item:
    """Return what is at a source: a file, a directory, or one snapshot of a Hugging Face cache entry.

    Args:
        source: absolute; a directory `models--ORG--NAME/snapshots/REVISION` stands for the entry with that snapshot.
        destination: absolute, on every node.
        hosts: that need it; none: all.

    Raises:
        ConfigError: it is not there, cannot be read, or holds what cannot be staged; all problems are listed.
    """
    try:
        status = os.stat(source)
    except OSError as error:
        raise _refusal(source, [_failure(source, error)]) from None
    snapshot = snapshot_at(source)
    found = _Found(root=os.path.realpath(snapshot.entry if snapshot else source))
    if snapshot:
        _scan_snapshot(found, snapshot.revision)
    elif stat.S_ISDIR(status.st_mode):
        _walk(found, _Folder("", "", (_Base(found.root, ""),)))
    else:
        _take(found, ".", ".", found.root, status)
    return found.item(destination, hosts)


def snapshot_at(path: str) -> Snapshot | None:
    """Return the snapshot that a directory is, by its place in a Hugging Face cache; None where it is none."""
    parent, revision = os.path.split(os.path.normpath(path))
    entry, snapshots = os.path.split(parent)
    is_one = snapshots == "snapshots" and os.path.basename(entry).startswith("models--")
    return Snapshot(entry, revision) if is_one else None


def shown(path: str) -> str:
    """Return a path of any bytes as one line of printable text."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# ------------------------------------------------------------------------------------------- Hugging Face


def _scan_snapshot(found: _Found, revision: str) -> None:
    """Take one snapshot, the blobs that it links to, and the refs that name it."""
    top = f"snapshots/{revision}"
    for path in ("", "snapshots", "blobs", "refs"):
        _take_directory(found, path or ".", _join(found.root, path))
    inner = _Base(os.path.realpath(_join(found.root, top)), top)
    _walk(found, _Folder(top, top, (_Base(found.root, ""), inner)))
    followed: set[str] = set()
    while found.links.keys() - followed:
        for path in sorted(found.links.keys() - followed):
            followed.add(path)
            _take_linked(found, found.links[path])
    _take_refs(found, revision)


def _take_linked(found: _Found, link: Link) -> None:
    """Take what a link of a snapshot leads to, inside the entry: a blob, or whatever else lies there."""
    place = _normal(os.path.dirname(link.path), link.target)
    if place in found.files or place in found.links or place in found.directories:
        return
    whole = _join(found.root, place)
    try:
        status = os.stat(whole)
    except OSError as error:
        found.problems.append(_failure(_join(found.root, link.path), error))
        return
    _take_parents(found, place)
    if stat.S_ISDIR(status.st_mode):
        _walk(found, _Folder(place, place, (_Base(found.root, ""), _Base(os.path.realpath(whole), place))))
    else:
        _take(found, place, place, whole, status)


def _take_refs(found: _Found, revision: str) -> None:
    """Take the refs that name the snapshot: an engine that is given the hub's name looks there."""
    for folder, _, names in os.walk(_join(found.root, "refs")):
        for name in names:
            whole = _join(folder, name)
            try:
                if Path(whole).read_bytes().strip() == os.fsencode(revision):
                    path = os.path.relpath(whole, found.root)
                    _take_parents(found, path)
                    _take(found, path, path, whole, os.stat(whole))
            except OSError as error:
                found.problems.append(_failure(whole, error))


def _take_parents(found: _Found, path: str) -> None:
    parent = os.path.dirname(path)
    if parent and parent not in found.directories:
        _take_parents(found, parent)
        _take_directory(found, parent, _join(found.root, parent))


def _take_directory(found: _Found, path: str, whole: str) -> None:
    try:
        mode = os.stat(whole).st_mode
    except FileNotFoundError:
        return  # an entry without refs, or whose snapshots hold the files themselves
    except OSError as error:
        found.problems.append(_failure(whole, error))
        return
    found.directories[path] = Directory(path, stat.S_IMODE(mode))


# ------------------------------------------------------------------------------------------- trees


def _walk(found: _Found, first: _Folder) -> None:
    """Take a directory and everything below it."""
    left = [first]
    while left:
        folder = left.pop()
        whole = _join(found.root, folder.source)
        try:
            mode = os.stat(whole).st_mode
            entries = sorted(os.scandir(whole), key=lambda entry: entry.name)
        except OSError as error:
            found.problems.append(_failure(whole, error))
            continue
        found.directories[folder.path or "."] = Directory(folder.path or ".", stat.S_IMODE(mode))
        for entry in entries:
            left += _entry(found, folder, entry)


def _entry(found: _Found, folder: _Folder, entry: os.DirEntry[str]) -> Iterator[_Folder]:
    """Take an entry of a directory; yield the directory that it leads to."""
    path, source = _join(folder.path, entry.name), _join(folder.source, entry.name)
    if not folder.path and entry.name.startswith(OWN):
        return  # of a tree that was staged itself: its manifest, not ours
    try:
        if entry.is_symlink():
            yield from _link(found, folder, entry)
        elif entry.is_dir(follow_symlinks=False):
            yield _Folder(path, source, folder.bases)
        else:
            _take(found, path, source, entry.path, entry.stat(follow_symlinks=False))
    except OSError as error:
        found.problems.append(_failure(entry.path, error))


def _link(found: _Found, folder: _Folder, entry: os.DirEntry[str]) -> Iterator[_Folder]:
    """Keep a link that stays inside, replace one that leads out; yield the directory that it leads to."""
    path, source = _join(folder.path, entry.name), _join(folder.source, entry.name)
    target = os.readlink(entry.path)
    status = entry.stat()  # dangling links and cycles end here
    place = _place(entry.path, target)
    for base in reversed(folder.bases):
        inside = _below(place, base.real)
        if inside is not None:
            whole = _join(base.path, inside)
            here = folder.path or "."
            stays = not os.path.isabs(target) and _normal(here, target) == (whole or ".")
            found.links[path] = Link(path, target if stays else os.path.relpath(whole or ".", here))
            return
    if not stat.S_ISDIR(status.st_mode):
        _take(found, path, source, entry.path, status)
        return
    real = os.path.realpath(entry.path)
    if any(_below(base.real, real) is not None for base in folder.bases):
        found.problems.append(f"{shown(entry.path)}: the link leads to a directory that contains it")
        return
    yield _Folder(path, source, (*folder.bases, _Base(real, path)))


def _place(link: str, target: str) -> str:
    """Return where a link points, one step far: what is there may be a link again, and is staged as one."""
    parent, name = os.path.split(os.path.join(os.path.dirname(link), target))
    if name in {"", ".", ".."}:
        return os.path.realpath(os.path.join(parent, name))
    return os.path.join(os.path.realpath(parent), name)


def _normal(folder: str, target: str) -> str:
    return os.path.normpath(os.path.join(folder, target))


def _below(path: str, base: str) -> str | None:
    """Return a path relative to a directory that holds it; None where it does not."""
    if path == base:
        return ""
    prefix = base.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _take(found: _Found, path: str, source: str, whole: str, status: os.stat_result) -> None:
    """Take a regular file that may be read; anything else is a problem."""
    kind = next((name for test, name in KINDS if test(status.st_mode)), None)
    if kind or not stat.S_ISREG(status.st_mode):
        found.problems.append(f"{shown(whole)}: {kind or 'no regular file'} cannot be staged")
    elif not os.access(whole, os.R_OK):
        found.problems.append(f"{shown(whole)}: it may not be read")
    else:
        found.files[path] = File(
            path, status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode), source
        )


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _sorted(records: dict[str, Record]) -> tuple[Record, ...]:
    return tuple(records[path] for path in sorted(records))


# ------------------------------------------------------------------------------------------- problems


def _failure(path: str, error: OSError) -> str:
    """Return what is wrong at a path."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"{shown(path)}: the link leads nowhere: {shown(os.readlink(path))}"
    words = {
        errno.ENOENT: "it is not there",
        errno.ELOOP: "the link leads to itself",
        errno.EACCES: "it may not be read",
    }
    return f"{shown(path)}: {words.get(error.errno or 0) or error.strerror}"


def _refusal(root: str, problems: list[str]) -> ConfigError:
    """Return the error of a source with its problems."""
    many = len(problems)
    lines = [f"{shown(root)} cannot be staged: {many} problem{'s' * (many != 1)}", *problems[:MOST_SHOWN]]
    if many > MOST_SHOWN:
        lines.append(f"and {many - MOST_SHOWN} more")
    linked = any("leads nowhere" in problem for problem in problems)
    return ConfigError(
        "\n".join(lines), hint="if a download was cut off, download the model again" if linked else None
    )
