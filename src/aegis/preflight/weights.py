"""How large a checkpoint is once it is loaded: from the names and sizes of its files, and one header. Pure and total."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.preflight.shape import Shape

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
NUMBERED = re.compile(r"([\w.-]+)-(\d{1,6})-of-(\d{1,6})(\.safetensors|\.bin)")
ALONE = ("model.safetensors", "consolidated.safetensors", "pytorch_model.bin")
SECOND_COPY = "consolidated"  # Mistral's own format, beside the files of the same model for everybody else
TOTAL_SIZE = re.compile(rb'"total_size"\s*:\s*(\d{1,18})\b')
MOST_SHARDS = 10_000

LARGEST = 2**60  # bytes; JSON knows no bounds
HEADER_LIMIT = 256 * 1024  # bytes of a file of weights that are read: a header has about 100 for each tensor
INDEX_LIMIT = 16 * 1024  # `total_size` stands at the beginning, a map of every tensor after it

FLOATS = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
}  # bytes; these are loaded in the type that the engine computes in
FLOAT32 = ("float32", "float")


class Weights(Struct, frozen=True):
    """The files that an engine loads."""

    stored: int | None  # bytes; None: not known
    first: str | None = None  # a file with a header
    missing: tuple[str, ...] = ()
    kinds: Mapping[str, int] = {}  # bytes of each data type, in some of the files


def weights_of(names: Mapping[str, int], index: bytes = b"") -> Weights:
    """Return what lies in a model's directory.

    Args:
        names: its files, with sizes.
        index: the beginning of its index, if it has one.
    """
    match = TOTAL_SIZE.search(index)
    total = int(match[1]) if match else None
    files, missing = _shards(names)
    files = files or next(([name] for name in ALONE if name in names), [])
    first = next((name for name in files if name.endswith(".safetensors")), None)
    on_disk = sum(names[name] for name in files)
    if missing or not files:
        return Weights(total or None, first, tuple(missing))
    return Weights(
        min(total or on_disk, on_disk), first
    )  # a merge of models may state a total that is too large


def _shards(names: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return the numbered files of a checkpoint, and those that its numbers promise and that are not there."""
    groups: dict[tuple[str, str, str], dict[int, str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            stem, number, count, suffix = match.groups()
            groups.setdefault((stem, count, suffix), {})[int(number)] = name
    best = max(groups, key=_preference, default=None)
    if best is None or not 0 < int(best[1]) <= MOST_SHARDS:
        return [], []
    stem, count, suffix = best
    there = groups[best]
    width = len(there[min(there)].removeprefix(f"{stem}-").partition("-")[0])
    wanted = range(1, int(count) + 1)
    missing = [f"{stem}-{number:0{width}d}-of-{count}{suffix}" for number in wanted if number not in there]
    return [there[number] for number in wanted if number in there], missing


def _preference(group: tuple[str, str, str]) -> tuple[bool, bool, bool, str]:
    """Sort the copies of a checkpoint by how engines choose: safetensors, the copy for everybody, the usual name."""
    stem, _, suffix = group
    return (suffix == ".safetensors", not stem.startswith(SECOND_COPY), stem == "model", stem)


def header_kinds(content: bytes) -> dict[str, int]:
    """Return the bytes of each data type in a safetensors file, from its beginning.

    The format: the length of the header in 8 bytes, little-endian; a JSON object of tensors; the data.
    """
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size or not size:
        return {}
    try:
        tensors = msgspec.json.decode(content[8 : 8 + size])
    except (msgspec.DecodeError, RecursionError):
        return {}
    kinds: dict[str, int] = {}
    for tensor in tensors.values() if isinstance(tensors, dict) else ():
        kind, length = _extent(tensor)
        if 0 < length < LARGEST:
            kinds[kind] = kinds.get(kind, 0) + length
    return kinds


def _extent(tensor: Any) -> tuple[str, int]:
    match tensor:
        case {"dtype": str(kind), "data_offsets": [int(begin), int(end)]}:
            return kind, end - begin
    return "", 0  # __metadata__, or nothing that we know


def loaded_size(weights: Weights, shape: Shape | None, dtype: str | None) -> float | None:
    """Return the bytes that the weights take when they are loaded, never more than an engine needs.

    vLLM and SGLang load float32 as 16 bit unless `--dtype float32` is given, and float16 as it is; what is quantized
    stays (vllm/config/model.py, `_resolve_auto_dtype`).
    """
    if weights.stored is None or (shape and shape.quantized):
        return weights.stored
    kinds = weights.kinds or {_likely_kind(shape): 1}
    width = 4 if dtype in FLOAT32 else 2
    total = sum(kinds.values())
    loaded = sum(size * width / FLOATS.get(kind, width) for kind, size in kinds.items())
    return weights.stored * loaded / total


def _likely_kind(shape: Shape | None) -> str:
    """Return the data type where no header tells: the widest that it may be, so that nothing is refused by mistake."""
    return "BF16" if shape and shape.dtype in ("bfloat16", "float16", "half") else "F32"


def counted(parameters: Mapping[str, int]) -> Weights:
    """Return the weights of a model of which only the number of parameters by data type is known, as the hub tells it."""
    widths = {**FLOATS, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
    sizes = {kind: count * widths[kind] for kind, count in parameters.items() if kind in widths}
    kinds = {kind: size for kind, size in sizes.items() if 0 < size < LARGEST}
    return Weights(sum(kinds.values()) or None, kinds=kinds)


def shown(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
