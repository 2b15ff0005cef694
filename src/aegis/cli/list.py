"""`aegis list`: the models of the catalog, and what is known of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.cli.render import print_json, table
from aegis.errors import ConfigError
from aegis.spec.catalog.entry import ENGINE_ARGS
from aegis.spec.catalog.lookup import Catalog, load_catalog
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.spec.catalog.entry import CatalogEntry

HEAD = ("NAME", "FAMILY", "TYPE", "GPUS", "NODES", "VOCABULARY", "CONTEXT")


@click.command()
@click.argument("model_name", metavar="[MODEL]", required=False)
@click.option(
    "--type", "model_type", metavar="TYPE", help="Only models of this type: LLM, VLM, OCR, Audio, ..."
)
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file of models to use instead of the catalog.",
)
def command(model_name: str | None, model_type: str | None, as_json: bool, config: Path | None) -> None:
    """List the models that `aegis submit MODEL` knows, or show what is known of one.

    GPUS are those of each node. CONTEXT is how many tokens the servers read, unless they are told otherwise.
    """
    catalog = load_catalog(os.environ, config)
    if model_name:
        entry = catalog.entry(model_name)
        if as_json:
            print_json(entry.as_config())
        else:
            click.echo(details(entry))
        return
    for doubt in catalog.doubts():
        click.echo(f"warning: {doubt}", err=True)
    entries = _of_type(catalog, model_type)
    if as_json:
        print_json(sorted(entry.model_name for entry in entries))
    else:
        click.echo(overview(entries, catalog.environment.model_types))


def _of_type(catalog: Catalog, wanted: str | None) -> list[CatalogEntry]:
    """Return the models of a type, however it is spelled; all without one."""
    entries = [catalog.entry(name) for name in catalog.names()]
    if wanted is None:
        return entries
    known = {kind.lower(): kind for kind in catalog.environment.model_types}
    chosen = known.get(wanted.replace("-", "_").lower())
    if chosen is None:
        hint = did_you_mean(wanted, known.values()) or f"one of {', '.join(known.values())}"
        raise ConfigError(f"--type: there is no type `{wanted}`", hint=hint)
    return [entry for entry in entries if entry.model_type == chosen]


def overview(entries: Sequence[CatalogEntry], types: Sequence[str]) -> str:
    """Return the models as a table: type by type, then by name, whatever the case of its letters."""
    ordered = sorted(entries, key=lambda entry: (types.index(entry.model_type), entry.model_name.lower()))
    rows = [
        (
            entry.model_name,
            entry.model_family,
            entry.model_type,
            entry.gpus_per_node,
            entry.num_nodes,
            entry.vocab_size or "-",
            entry.served_context or "-",
        )
        for entry in ordered
    ]
    return table(HEAD, rows)


def details(entry: CatalogEntry) -> str:
    """Return what the files say of a model, engine arguments one by one."""
    values: dict[str, Any] = msgspec.to_builtins(entry)
    rows: list[tuple[str, object]] = [
        (key, value) for key, value in values.items() if value is not None and not isinstance(value, dict)
    ]
    for key in (*ENGINE_ARGS, "env"):
        if values[key]:
            rows += [(f"{key}:", ""), *((f"  {name}", shown(value)) for name, value in values[key].items())]
    return table(("KEY", "VALUE"), rows)


def shown(value: Any) -> str:
    """Return a value of an engine argument as a file of models has it."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
