"""Write the reference pages in docs/reference from the code: the command line and the deployment file.

python scripts/generate_docs.py [--check]
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from aegis.cli import cli
from aegis.cli.gateway import KEYS, WithKeys
from aegis.cli.options import deployment_options
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.resolve import SECRET, is_scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
WIDTH = 100  # columns of a help page, whatever the terminal has
PLAIN_TYPES = {msgspec.inspect.BoolType: "true or false", msgspec.inspect.StrType: "text"}
NOTE = "<!-- Made by scripts/docs from the code; edit the code. -->"


def pages() -> dict[str, str]:
    """Return the text of every generated page by its file name."""
    return {"cli.md": command_line(), "deployment.md": deployment_file()}


def command_line() -> str:
    """Return the page with the help of every command."""
    parts: list[str] = [NOTE, "# Command line", "Every command, as its `--help` shows it."]
    for name, text in help_texts(cli, "aegis", None):
        parts += [f"## `{name}`", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def help_texts(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of a command and of all below it."""
    path = name if parent is None else f"{parent.command_path} {name}"
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings
    )
    yield path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, WithKeys):
        plain = click.Context(click.Command(name), info_name=name, parent=parent)
        yield from help_texts(command.other(), KEYS, plain)
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child and not child.hidden:
                yield from help_texts(child, child_name, context)


def deployment_file() -> str:
    """Return the page with every key of the deployment file."""
    return (
        "\n\n".join(
            [
                NOTE,
                "# Deployment file",
                (
                    "Every key, with its flag and its environment variable. A flag wins over the environment, the "
                    "environment over the file, the file over the platform, the platform over the default."
                ),
                "## Keys of the whole deployment",
                key_table(Deployment, skip=("models",)),
                "## Keys of a model",
                (
                    "At the top level of a file with one model, or in each entry of `models:`; there, a key at the "
                    "top level is the default of every entry."
                ),
                key_table(ModelEntry),
                "## Secrets",
                (
                    f"`HF_TOKEN` in the environment is the Hugging Face token. `{SECRET}:` in the file and "
                    f"`{flag_names()[SECRET]}` work too, with a warning: others can read them. It is never shown, and "
                    "never part of the deployment that a job script or a run directory holds."
                ),
            ]
        )
        + "\n"
    )


def key_table(cls: type[msgspec.Struct], skip: tuple[str, ...] = ()) -> str:
    """Return a Markdown table of the fields of a struct."""
    rows = [("Key", "Type", "Default", "Meaning", "Flag", "Environment"), ("---",) * 6]
    flags = flag_names()
    for field in msgspec.structs.fields(cls):
        if field.name in skip:
            continue
        variable = f"`AEGIS_{field.name.upper()}`" if is_scalar(field.type) else ""
        rows.append(
            (
                f"`{field.name}`",
                type_text(msgspec.inspect.type_info(field.type)),
                default_text(field),
                description(field),
                f"`{flags[field.name]}`",
                variable,
            )
        )
    return "\n".join(table_row(row) for row in rows)


def table_row(cells: tuple[str, ...]) -> str:
    """Return a row of a Markdown table."""
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def flag_names() -> dict[str, str]:
    """Return the flags of every key as the commands really have them."""

    def nothing() -> None:
        pass

    flags: dict[str, list[str]] = {}
    for param in click.command()(deployment_options(nothing)).params:
        flags.setdefault(str(param.name), []).extend([*param.opts, *param.secondary_opts])
    return {name: "`, `".join(found) for name, found in flags.items()}


def description(field: msgspec.structs.FieldInfo) -> str:
    """Return what a field's metadata says of it.

    Raises:
        ValueError: it says nothing.
    """
    info = msgspec.inspect.type_info(field.type)
    schema = info.extra_json_schema if isinstance(info, msgspec.inspect.Metadata) else None
    if not schema or not schema.get("description"):
        raise ValueError(f"the key {field.name} has no description")
    return str(schema["description"])


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """Return the default as the file would have it."""
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return f"`{json.dumps(value)}`" if value or value is False else ""


def type_text(info: msgspec.inspect.Type) -> str:
    """Return a type in a person's words."""
    text = PLAIN_TYPES.get(type(info), "")
    match info:
        case msgspec.inspect.Metadata():
            text = type_text(info.type)
        case msgspec.inspect.UnionType():
            items = (item for item in info.types if type(item) is not msgspec.inspect.NoneType)
            text = " or ".join(map(type_text, items))
        case msgspec.inspect.LiteralType():
            text = ", ".join(f"`{value}`" for value in info.values)
        case msgspec.inspect.IntType():
            text = number_text(info)
        case msgspec.inspect.VarTupleType():
            text = f"list of {type_text(info.item_type)}"
        case msgspec.inspect.DictType():
            text = f"mapping to {type_text(info.value_type)}"
    return text


def number_text(info: msgspec.inspect.IntType) -> str:
    """Return a whole number with its bounds."""
    if info.ge is not None and info.le is not None:
        return f"{info.ge} to {info.le}"
    return f"number, at least {info.ge}" if info.ge is not None else "number"


def differences(directory: Path) -> str:
    """Return how the pages in a directory differ from what the code says; empty when they do not."""
    lines: list[str] = []
    for name, text in pages().items():
        path = directory / name
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        lines += difflib.unified_diff(
            found.splitlines(), text.splitlines(), f"{name} (there)", f"{name} (should be)", lineterm="", n=1
        )
    return "\n".join(lines)


def main() -> None:
    """Write the pages, or only compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    if not parser.parse_args().check:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            (REFERENCE / name).write_text(text, encoding="utf-8")
    elif found := differences(REFERENCE):
        print(found)
        sys.exit("error: the reference pages are stale: run scripts/docs")


if __name__ == "__main__":
    main()
