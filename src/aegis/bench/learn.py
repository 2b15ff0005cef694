"""What a server makes of our words, asked before a load that needs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.bench.processes import run_load
from aegis.bench.prompts import PROBES, Prompt, Tokens, fit, probe_text
from aegis.bench.work import Work
from aegis.errors import SiteError

if TYPE_CHECKING:
    from aegis.api.targets import Target


def learn_tokens(target: Target, model: str, *, chat: bool = False, api_key: str | None = None) -> Tokens:
    """Return how many tokens a server counts of our words, from the usage of two requests; it is warm after them.

    Raises:
        SiteError: it does not answer them.
    """
    prompts = tuple(Prompt(probe_text(words), 1) for words in PROBES)
    work = Work(target=target, model=model, prompts=prompts, concurrency=1, chat=chat, seconds=300.0)
    records = run_load([work], api_key=api_key).outcomes[0].records
    if problem := next(filter(None, records.errors), None):
        raise SiteError(f"{target.address} does not answer a first request: {problem}")
    return fit(records.input_tokens.tolist())
