"""`python -m aegis` is the command line."""

from aegis.cli import entry

entry()
