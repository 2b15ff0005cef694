"""The files of a login node, read through a transport: one shell there for everything that is asked in a step."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

from aegis.errors import SiteError
from aegis.preflight.files import Ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from aegis.fleet.request import Place
    from aegis.schedulers.transport import Transport

START = "aegis-files"  # what a shell's start-up files print comes before it
# One answer per VERB LIMIT PATH, each part of it ended by a NUL; an empty part ends a list.
LOOK = r"""
printf 'aegis-files\0'
while [ $# -ge 3 ]; do
  verb=$1 limit=$2 path=$3
  shift 3
  case $verb in
    look)
      if [ -d "$path" ]; then
        if [ -w "$path" ] && [ -x "$path" ]; then printf 'open\0'; else printf 'folder\0'; fi
      elif [ -e "$path" ]; then printf 'file\0'
      else printf 'none\0'
      fi ;;
    names)
      [ -d "$path" ] && find -L "$path" -mindepth 1 -maxdepth 1 ! -type l -printf '%s/%f\0'
      printf '\0' ;;
    read)
      [ -f "$path" ] && head -c "$limit" -- "$path" | base64 | tr -d '\n'
      printf '\0' ;;
  esac
done 2>/dev/null
"""


class TransportFiles:
    """The files at the far end of a transport; each is looked at once.

    Every method may raise SiteError: the far side cannot be asked.
    """

    seen = True

    def __init__(self, transport: Transport, place: Place) -> None:
        self.transport = transport
        self.place = place
        self._known: dict[Ask, tuple[str, ...]] = {}

    def absolute(self, path: str) -> str:
        """Return a path as the far side means it."""
        return self.place.absolute(path)

    def expect(self, asked: Iterable[Ask]) -> None:
        """Ask for everything that is not known yet, at once."""
        new = [ask for ask in dict.fromkeys(asked) if ask not in self._known]
        nowhere = [ask for ask in new if "\0" in ask.path]  # no argument can say it
        self._known.update(dict.fromkeys(nowhere, ()))
        if new := [ask for ask in new if ask not in nowhere]:
            words = [word for ask in new for word in (ask.verb, str(ask.limit), ask.path)]
            done = self.transport.run(["bash", "-c", LOOK, "aegis", *words])
            self._known.update(zip(new, self._answers(done.out, new), strict=True))

    def exists(self, path: str) -> bool:
        """Tell whether there is such a path."""
        return self._look(path) not in ("none", "")

    def is_dir(self, path: str) -> bool:
        """Tell whether it is a directory."""
        return self._look(path) in ("folder", "open")

    def writable(self, folder: str) -> bool:
        """Tell whether files can be made in a directory."""
        return self._look(folder) == "open"

    def names(self, folder: str) -> Mapping[str, int]:
        """Return what lies in a directory, with sizes in bytes."""
        parts = (part.partition("/") for part in self._answer(Ask("names", folder)))
        return {name: int(size) for size, _, name in parts if size.isdecimal()}

    def read(self, path: str, limit: int) -> bytes:
        """Return the first bytes of a file."""
        try:
            return binascii.a2b_base64("".join(self._answer(Ask("read", path, limit))))
        except ValueError:
            return b""

    def _look(self, path: str) -> str:
        return "".join(self._answer(Ask("look", path)))

    def _answer(self, ask: Ask) -> tuple[str, ...]:
        self.expect([ask])
        return self._known[ask]

    def _answers(self, out: str, asked: list[Ask]) -> Iterator[tuple[str, ...]]:
        """Yield the parts of each answer.

        Raises:
            SiteError: the far side did not answer all of it.
        """
        parts = iter(out.partition(f"{START}\0")[2].split("\0")[:-1])
        for ask in asked:
            answer = [*_parts(parts, ask)]
            if not answer:
                raise SiteError(
                    f"{self.transport.name} does not tell which files it has: the answer of its shell is incomplete",
                    hint="it needs bash, find, head, base64 and tr",
                )
            yield tuple(answer)


def _parts(parts: Iterator[str], ask: Ask) -> Iterator[str]:
    """Yield the next answer: one part, or those up to an empty one; nothing where it is cut short."""
    found = []
    for part in parts:
        found.append(part)
        if ask.verb != "names" or not part:
            yield from found
            return
