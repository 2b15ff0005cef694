"""Nothing is fitted to the test half: what the fit is given, and what the carried file names."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from msgspec.structs import replace

from aegis.planner.silicon import deployments, fit
from aegis.planner.silicon.deployments import in_fit_half, shipped
from aegis.planner.silicon.fitted import fitted

if TYPE_CHECKING:
    from aegis.planner.silicon.deployments import Deployment

SILICON = Path(deployments.__file__).parent


class Sealed:
    """A row of the test half: all that may be known of it is its id."""

    def __init__(self, row: Deployment) -> None:
        self.id = row.id

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of {self.id} was looked at, a row of the test half")


def test_the_halves_are_those_of_the_rule() -> None:
    rows = shipped()
    first = {row.id for row in rows if int(sha256(row.id.encode()).hexdigest()[:8], 16) % 2 == 0}
    assert first == {row.id for row in rows if in_fit_half(row.id)}
    assert (len(rows), len(first), len({row.id for row in rows})) == (5221, 2611, 5221)


def test_the_fit_looks_at_no_row_of_the_test_half(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shipped()
    sealed = tuple(row if in_fit_half(row.id) else cast("Deployment", Sealed(row)) for row in rows)
    with pytest.raises(AssertionError, match="looked at"):
        _ = next(row for row in sealed if isinstance(row, Sealed)).ttft
    as_it_is = fit.rows()
    monkeypatch.setattr(fit, "shipped", lambda: sealed)
    assert fit.rows() == as_it_is
    assert all(in_fit_half(row.id) for row in as_it_is)


def test_the_fit_is_given_each_measurement_once() -> None:
    given = fit.rows()
    assert len({row.measurement for row in given}) == len(given)
    told = [replace(row, id=f"{row.id} again") for row in given[:50]]
    assert len(fit.rows([*given[:50], *told])) == 50


def test_only_what_chooses_the_rows_knows_all_of_them() -> None:
    readers = {path.stem for path in SILICON.glob("*.py") if "shipped()" in path.read_text(encoding="utf-8")}
    assert readers == {"deployments", "fit"}
    script = (Path(__file__).parents[3] / "scripts" / "fit_silicon.py").read_text(encoding="utf-8")
    assert "shipped" not in script
    assert "rows()" in script


def test_what_is_carried_along_names_rows_of_the_fit_half_alone() -> None:
    known = fitted()
    given = {row.id for row in fit.rows()}
    for errors in (known.ttft, known.tpot):
        ids = [each.id for each in errors.residuals]
        assert ids
        assert len(set(ids)) == len(ids)
        assert set(ids) <= given
        assert all(map(in_fit_half, ids))
