"""`aegis plan tables`: the measured tables that plans rest on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from aegis.cli.plan.options import PlanCommand, Progress
from aegis.cli.render import print_json, table
from aegis.errors import NotFoundError
from aegis.planner.systems import load_system, own_folder, system_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.tables.store import Finding, TableInfo

_KIB = 1024


@click.group()
def command() -> None:
    """List, import or check measured tables.

    Tables in $AEGIS_TABLES or ~/.config/aegis/tables add to those that are shipped, or replace them.
    """


@command.command("list", cls=PlanCommand, short_help="List the tables there are.")
@click.option("--system", metavar="NAME", help="Only of this system.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_tables(system: str | None, as_json: bool) -> None:
    """List the tables there are, and the systems without any, whose figures come from a formula."""
    infos = _tables(system)
    bare = [name for name in _without_tables(infos) if system in {None, name}]
    if system is not None and not infos and not bare:
        load_system(system)  # says which one may have been meant
    if as_json:
        print_json([msgspec.to_builtins(each) for each in infos])
        return
    rows = [
        (
            each.system,
            each.backend,
            each.version,
            each.era,
            len(each.operations),
            each.rows,
            f"{each.bytes / _KIB:.0f} KiB",
            "yes" if each.lossless else "no",
            len(each.findings) or "",
            f"{each.origin}, {each.licence}" if each.licence else each.origin,
        )
        for each in infos
    ]
    head = (
        *("SYSTEM", "BACKEND", "VERSION", "ERA", "OPERATIONS", "ROWS", "SIZE"),
        "LOSSLESS",
        "FINDINGS",
        "ORIGIN",
    )
    click.echo(table(head, rows))
    if bare:
        click.echo(f"\nestimated by a formula, without tables: {', '.join(bare)}")


@command.command("import", cls=PlanCommand, short_help="Convert the tables of an AIConfigurator package.")
@click.argument("package_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--lossless", is_flag=True, help="Keep every digit (files are several times larger).")
@click.option("--system", "systems", multiple=True, metavar="NAME", help="Only this system. Repeatable.")
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this backend. Repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the files go (default: $AEGIS_TABLES or ~/.config/aegis/tables).",
)
def import_tables(
    package_dir: Path, lossless: bool, systems: tuple[str, ...], backends: tuple[str, ...], out: Path | None
) -> None:
    """Convert the tables of an unpacked AIConfigurator package, one file for each system and backend."""
    from aegis.planner.tables.importing import import_package  # noqa: PLC0415 - start-up time

    out = own_folder() if out is None else out
    with Progress() as progress:
        found = import_package(
            package_dir, out, lossless=lossless, systems=systems or None, backends=backends or None
        )
        for info in found:
            progress.tell(f"{info.system} {info.backend}")
            said = f"{info.rows} rows of {len(info.operations)} operations, {info.bytes / _KIB:.0f} KiB"
            click.echo(f"{info.file}: {said}")


@command.command(cls=PlanCommand, short_help="Find tables that contradict their neighbours.")
@click.option("--system", metavar="NAME", help="Only of this system.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(system: str | None, as_json: bool) -> None:
    """Find tables that contradict their neighbours: other sizes, other engines on the same GPU, the hardware."""
    from aegis.planner.tables.check import check_tables  # noqa: PLC0415 - start-up time

    infos = _tables(system)
    if not infos:
        if system is not None:
            load_system(system)  # says which one may have been meant
        raise NotFoundError(f"no tables of {system}", hint="`aegis plan tables list` shows all there are")
    findings: list[Finding] = []
    with Progress() as progress:
        for name, era in dict.fromkeys((each.system, each.era) for each in infos):
            progress.tell(name)
            findings += check_tables(name, era=era)
    if as_json:
        print_json([msgspec.to_builtins(each) for each in findings])
        return
    for each in findings:
        click.echo(each.what)
    click.echo(f"{len(infos)} tables, {len(findings)} contradictions")


def _tables(system: str | None) -> list[TableInfo]:
    from aegis.planner.tables.store import shipped  # noqa: PLC0415 - start-up time

    return [each for each in shipped() if system in {None, each.system}]


def _without_tables(infos: Iterable[TableInfo]) -> list[str]:
    measured = {each.system for each in infos}
    return [name for name in system_names() if name not in measured and load_system(name).estimated]
