"""Read the columns of a measured file: Parquet (needs pyarrow) or CSV."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Frame(NamedTuple):
    """Columns of one file, all equally long: text, whole numbers or floats."""

    file: str
    columns: dict[str, NDArray[Any]]
    rows: int

    def text(self, name: str, default: str | None = None) -> NDArray[np.str_]:
        """Return a column as text; a missing value is the default."""
        values = self._column(name, default)
        if values.dtype.kind == "O":
            values = np.array([default or "" if each is None else each for each in values])
        return values.astype(np.str_)

    def whole(self, name: str, default: int | None = None) -> NDArray[np.int64]:
        """Return a column as whole numbers; a missing value is the default."""
        values = self._column(name, default)
        if values.dtype.kind == "i":
            return values.astype(np.int64)
        numbers = self._floats(name, values)
        return np.where(np.isnan(numbers), default or 0, numbers).astype(np.int64)

    def number(self, name: str, default: float | None = None) -> NDArray[np.float64]:
        """Return a column as floats; a missing value is the default."""
        return self._floats(name, self._column(name, default))

    def _floats(self, name: str, values: NDArray[Any]) -> NDArray[np.float64]:
        try:
            return values.astype(np.float64)
        except ValueError as error:
            raise ConfigError(f"{self.file}: column `{name}`: {error}") from None

    def _column(self, name: str, default: str | float | None) -> NDArray[Any]:
        if name in self.columns:
            return self.columns[name]
        if default is None:
            raise ConfigError(
                f"{self.file}: there is no column `{name}`", hint=f"there are {', '.join(self.columns)}"
            )
        return np.full(self.rows, default)

    def among(self, name: str, values: Iterable[str]) -> Frame:
        """Return the rows whose column `name` is one of the values."""
        return self.where(np.isin(self.text(name, ""), list(values)))

    def where(self, mask: NDArray[np.bool_]) -> Frame:
        """Return the rows of a mask."""
        columns = {name: values[mask] for name, values in self.columns.items()}
        return Frame(self.file, columns, int(mask.sum()))


def read_frame(file: Path) -> Frame:
    """Read a measured file, Parquet or CSV by its suffix.

    Raises:
        ConfigError: it cannot be read, or pyarrow is not installed.
    """
    return _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)


def _read_parquet(file: Path) -> Frame:
    try:
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415 - an extra: only imports need it
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            f"{file}: Parquet needs pyarrow", hint="pip install 'aegis-serve[tables]'"
        ) from None
    try:
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{file}: cannot be read as Parquet: {error}") from None
    columns = {
        name: column.to_numpy(zero_copy_only=False)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return Frame(str(file), columns, table.num_rows)


def _read_csv(file: Path) -> Frame:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            lines = csv.reader(stream)
            header: Sequence[str] = next(lines, [])
            cells = [line for line in lines if len(line) == len(header)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read as CSV: {error}") from None
    columns = dict(zip(header, np.array(cells, dtype=object).T, strict=False)) if cells else {}
    return Frame(str(file), columns, len(cells))
