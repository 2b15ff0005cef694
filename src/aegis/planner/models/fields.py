"""Read single values of a config.json: a number, a flag or a list, or an error that names file and key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

SANE = 10**9  # no size of a model is larger
MOST_LAYERS = 4096  # each is looked at


class Fields(NamedTuple):
    """The values of one object of a file."""

    where: str
    values: Mapping[str, Any]

    def error(self, key: str, what: str) -> ConfigError:
        """Return the error that says what is wrong with a key."""
        return ConfigError(
            f"{self.where}: `{key}` {what}", hint="compare it with the model's own config.json"
        )

    def count(self, *keys: str, most: int = SANE) -> int:
        """Return the first of these that is there, or 0.

        Raises:
            ConfigError: it is no whole number, negative, or beyond `most`.
        """
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int_of(value):
                raise self.error(key, f"is {shown(value)}, not a whole number")
            if not 0 <= value <= most:
                raise self.error(key, f"is {shown(value)}, not between 0 and {most}")
            if value:
                return int(value)
        return 0

    def size(self, *keys: str, most: int = SANE) -> int:
        """Return the first of these that is there; it must be, and not be 0.

        Raises:
            ConfigError: none is there, or it is strange.
        """
        value = self.count(*keys, most=most)
        if not value:
            raise self.error(keys[0], "is missing")
        return value

    def layers(self, *keys: str) -> int:
        """Return the number of layers: said, or as many as a pattern or a list of them has."""
        said = self.count(*keys, most=MOST_LAYERS)
        if said:
            return said
        for key in ("hybrid_override_pattern", "layers_block_type", "layer_types"):
            value = self.values.get(key)
            if isinstance(value, list | str) and 0 < len(value) <= MOST_LAYERS:
                return len(value)
        raise self.error(keys[0], "is missing")

    def flag(self, key: str) -> bool:
        """Return whether a key is there and true."""
        return self.values.get(key) is True

    def objects(self, key: str) -> list[Mapping[str, Any]]:
        """Return a list of objects; what is none of both is left out."""
        value = self.values.get(key)
        return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []

    def per_layer(self, key: str, layers: int) -> list[Any] | None:
        """Return a list with one entry a layer (more belong to MTP), or None if there is no list.

        Raises:
            ConfigError: it has fewer entries than layers.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or not value:
            return None
        if len(value) < layers:
            raise self.error(key, f"has {len(value)} entries for {layers} layers")
        return value[:layers]


def int_of(value: float) -> float:
    """Return the whole part, or NaN where there is none (so that it equals nothing)."""
    try:
        return int(value)
    except (OverflowError, ValueError):
        return float("nan")


def shown(value: object, most: int = 40) -> str:
    """Return a value as an error shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"
