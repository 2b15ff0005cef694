"""Measured deployments: one row is one server (or replica) under one load, with its TTFT and TPOT.

A table is CSV with the columns of aiconfigurator's `silicon_sample.csv`; others are left alone. The users of a deployment stand in
`silicon_concurrency`, or in `silicon_data_source` as `silicon_concurrency=N`.
"""

from __future__ import annotations

import csv
import io
import lzma
import re
from functools import cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from aegis.errors import ConfigError, DeploymentError, Problem
from aegis.planner.models.resolve import find_model
from aegis.planner.problem import BACKENDS, Parallel
from aegis.planner.systems import DATA, load_system

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from aegis.planner.problem import Backend, ServingMode

SHIPPED: Final = DATA / "silicon" / "deployments.csv.xz"
NEEDED: Final = (
    "backend",
    "model_path",
    "system",
    "mode",
    "isl",
    "osl",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
SIZES: Final = {
    "tp": "tp_size",
    "pp": "pp_size",
    "dp": "attention_dp_size",
    "moe_tp": "moe_tp_size",
    "moe_ep": "moe_ep_size",
}
SLOWEST: Final = 1e6  # ms; beyond it no answer was waited for


class Deployment(Struct, frozen=True, kw_only=True):
    """One row. Counts that are not told are 0."""

    id: str
    backend: Backend
    version: str = ""
    model: str
    system: str
    precision: str = ""
    mode: ServingMode
    isl: int
    osl: int
    gemm: str = ""  # formats by the names of the tables; empty: the model's own
    moe: str = ""
    concurrency: int  # users of the whole deployment
    split: Parallel  # of one worker; disaggregated: of a decode worker
    prefill: Parallel | None = None  # disaggregated: of a prefill worker
    prefill_workers: int = 0
    decode_workers: int = 0
    ttft: float  # ms, measured
    tpot: float

    @property
    def gpus(self) -> int:
        """GPUs of the deployment; workers that are not told count as one."""
        if self.prefill is None:
            return self.split.gpus
        return (self.prefill_workers or 1) * self.prefill.gpus + (self.decode_workers or 1) * self.split.gpus

    @property
    def measurement(self) -> tuple[float, float]:
        """What tells a measurement from others: copies agree to all digits."""
        return self.ttft, self.tpot


def in_fit_half(identity: str) -> bool:
    """Tell whether a row may be looked at to choose anything; the others only test."""
    return int(sha256(identity.encode()).hexdigest()[:8], 16) % 2 == 0


def throughput(row: Deployment, ttft: float, tpot: float) -> float:
    """Return output tokens/s of a GPU by Little's law: users who ask again as soon as they have their answer."""
    return 1000 * row.concurrency * row.osl / (ttft + tpot * (row.osl - 1)) / row.gpus


def flaw(row: Deployment) -> str:
    """Return by which rule a row cannot be right; empty: by none."""
    if not 0 < row.ttft < SLOWEST or not 0 < row.tpot < SLOWEST:
        return "a time is not positive, or longer than a quarter of an hour"
    shape = find_model(row.model)
    for split in filter(None, (row.split, row.prefill)):
        if shape.heads % split.tp:
            return "the attention heads cannot be divided by tp"
        if shape.has_experts and split.tp * split.dp != split.moe_tp * split.moe_ep:
            return "attention and experts take different numbers of GPUs"
    return ""


@cache
def shipped() -> tuple[Deployment, ...]:
    """Return the measured deployments that are carried along, in the order of their table."""
    return tuple(_rows(lzma.decompress(SHIPPED.read_bytes()).decode(), SHIPPED.name))


def read(file: Path) -> tuple[Deployment, ...]:
    """Return the rows of a table of one's own.

    Raises:
        ConfigError: it cannot be read, or lacks columns.
        DeploymentError: values are wrong; all of them, with their lines.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return tuple(_rows(text, str(file)))


def is_table(text: str) -> bool:
    """Tell whether a text begins with the header of such a table."""
    return set(NEEDED) <= set(next(csv.reader(io.StringIO(text)), []))


def _rows(text: str, name: str) -> list[Deployment]:
    lines = csv.DictReader(io.StringIO(text), restval="")  # a line may be cut short
    if missing := [column for column in NEEDED if column not in (lines.fieldnames or ())]:
        raise ConfigError(
            f"{name}: no column {', '.join(missing)}", hint="the columns are those of docs/accuracy.md"
        )
    problems: list[Problem] = []
    rows = []
    for values in lines:
        where = f"{name}:{lines.line_num}"
        if empty := [column for column in NEEDED if not values[column].strip()]:
            problems.append(Problem(where, f"nothing in {', '.join(empty)}"))
            continue
        try:
            rows.append(_repaired(_row(values, where)))
        except (ValueError, ConfigError) as error:
            problems += [_problem(where, each) for each in _mistakes(values) or [error]]
    if problems:
        raise DeploymentError(problems)
    return rows


def _row(values: Mapping[str, str], where: str) -> Deployment:
    """Return the deployment of one line, or raise ValueError or ConfigError with what is wrong."""
    disaggregated = _one_of(values, "mode", ("agg", "disagg")) == "disagg"
    model = values["model_path"]
    shape = find_model(model)
    _known_system(values["system"])
    split = _split(values, "decode_" if disaggregated else "", experts=shape.has_experts)
    decoders = _count(values, "decode_num_workers")
    batch = _count(values, "decode_batch_size" if disaggregated else "batch_size")
    users = _users(values)
    held = batch * split.dp * split.pp * (decoders or 1)
    if not users and not held:
        raise ValueError("neither silicon_concurrency nor a batch size is told")
    # Some tables name the users of several equal servers, and the batch of one of them.
    alone = not disaggregated and split.dp == 1 and held
    return Deployment(
        id=values.get("id") or where,
        backend=_one_of(values, "backend", BACKENDS),
        version=values.get("backend_version") or "",
        model=model,
        system=values["system"],
        precision=values.get("precision") or "",
        mode="disagg" if disaggregated else "agg",
        isl=_count(values, "isl", least=1),
        osl=_count(values, "osl", least=2),
        gemm=values.get("gemm_quant_mode") or "",
        moe=(values.get("moe_quant_mode") or "") if shape.has_experts else "",
        concurrency=held if alone else users or held,
        split=split,
        prefill=_split(values, "prefill_", experts=shape.has_experts) if disaggregated else None,
        prefill_workers=_count(values, "prefill_num_workers"),
        decode_workers=decoders,
        ttft=_time(values, "silicon_ttft_ms"),
        tpot=_time(values, "silicon_tpot_ms"),
    )


def _problem(where: str, error: ValueError | ConfigError) -> Problem:
    return (
        Problem(where, error.message, error.hint)
        if isinstance(error, ConfigError)
        else Problem(where, str(error))
    )


def _mistakes(values: Mapping[str, str]) -> list[ValueError | ConfigError]:
    """Return what is wrong with each cell of a line by itself."""
    disaggregated = values.get("mode") == "disagg"
    roles = ("prefill_", "decode_") if disaggregated else ("",)
    counts = [role + column for role in roles for column in SIZES.values()]
    counts += ["prefill_num_workers", "decode_num_workers", "silicon_concurrency"]
    counts += ["decode_batch_size" if disaggregated else "batch_size"]
    found: list[ValueError | ConfigError] = []
    for check in (
        partial(_one_of, values, "mode", ("agg", "disagg")),
        partial(_one_of, values, "backend", BACKENDS),
        partial(find_model, values["model_path"]),
        partial(_known_system, values["system"]),
        *(partial(_count, values, column) for column in counts),
        partial(_count, values, "isl", least=1),
        partial(_count, values, "osl", least=2),
        partial(_time, values, "silicon_ttft_ms"),
        partial(_time, values, "silicon_tpot_ms"),
    ):
        try:
            check()
        except (ValueError, ConfigError) as error:
            found.append(error)
    return found


def _repaired(row: Deployment) -> Deployment:
    """Return a row with its split as it was run.

    Attention that is data parallel on n GPUs with experts on the same n is written as n x n in some rows: as tp n, dp n and
    moe_ep n * n, or as dp n * n with moe_tp n and moe_ep n. No aggregated server of a node with eight GPUs has as many.
    """
    split = row.split
    twice = split.tp == split.dp and split.moe_tp == 1 and split.moe_ep == split.tp * split.dp
    square = split.tp == 1 and split.moe_tp == split.moe_ep and not row.system.startswith("gb")
    square = square and split.moe_tp * split.moe_ep == split.dp
    if row.prefill is not None or split.dp == 1 or not (twice or square):
        return row
    size = split.dp if twice else split.moe_tp
    return replace(row, split=Parallel(pp=split.pp, dp=size, moe_ep=size))


def _users(values: Mapping[str, str]) -> int:
    if values.get("silicon_concurrency"):
        return _count(values, "silicon_concurrency")
    found = re.search(r"silicon_concurrency=(\d+)", values.get("silicon_data_source") or "")
    return int(found[1]) if found else 0


def _split(values: Mapping[str, str], role: str, *, experts: bool) -> Parallel:
    """Return a split; what is empty or 0 is not split."""
    sizes = {name: max(_count(values, role + column), 1) for name, column in SIZES.items()}
    if not experts:
        sizes = {name: sizes[name] for name in ("tp", "pp")}
    elif sizes["moe_tp"] * sizes["moe_ep"] == 1:
        sizes["moe_ep"] = sizes["tp"] * sizes["dp"]
    return Parallel(**sizes)


def _count(values: Mapping[str, str], column: str, least: int = 0) -> int:
    text = (values.get(column) or "").strip()
    if not text and not least:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ValueError(f"{column} is {text!r}, not a whole number{f' from {least} on' if least else ''}")
    return int(text)


def _time(values: Mapping[str, str], column: str) -> float:
    try:
        return float(values.get(column) or "")
    except ValueError:
        raise ValueError(f"{column} is {values.get(column)!r}, no number of ms") from None


@cache
def _known_system(name: str) -> None:
    """Raise ConfigError if there is no such system; thousands of rows name a few."""
    load_system(name)


def _one_of(values: Mapping[str, str], column: str, known: tuple[str, ...]) -> Any:
    value = values.get(column) or ""
    if value not in known:
        raise ValueError(f"{column} is {value!r}, none of {', '.join(known)}")
    return value


def copies(rows: Iterable[Deployment]) -> Iterator[Deployment]:
    """Yield the rows of the test half that are the measurement of a row of the fit half once more.

    Published tables overlap: one measurement may stand in three of them under three names.
    """
    rows = tuple(rows)
    known = {row.measurement for row in rows if in_fit_half(row.id)}
    yield from (row for row in rows if not in_fit_half(row.id) and row.measurement in known)
