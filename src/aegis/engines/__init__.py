"""The inference engines: how to build the command line, read health and read metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis.engines.base import Engine


def engine(name: str) -> Engine:
    """Return the engine of that name: vllm, sglang or sim."""
    from aegis.engines.sglang import Sglang  # noqa: PLC0415 - a name check in spec must not load them all
    from aegis.engines.sim import Sim  # noqa: PLC0415 - as above
    from aegis.engines.vllm import Vllm  # noqa: PLC0415 - as above

    engines: dict[str, type[Engine]] = {"vllm": Vllm, "sglang": Sglang, "sim": Sim}
    return engines[name]()
