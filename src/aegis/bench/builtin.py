"""Endpoints measured by our own load generator."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from aegis.bench.learn import learn_tokens
from aegis.bench.metrics import measure
from aegis.bench.processes import processes_for, run_load
from aegis.bench.prompts import Tokens
from aegis.bench.report import Result, figures_of
from aegis.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.api.targets import Target
    from aegis.bench.generator import Generator
    from aegis.bench.load import Outcome
    from aegis.bench.question import Question
    from aegis.bench.work import Work

AT_ONCE: Final = 128  # requests under way that one process follows with ease
ASKED: Final = 3  # endpoints that are asked what they make of words, before a model is given up


def run_builtin(
    targets: Sequence[tuple[Target, str]],
    question: Question,
    *,
    seconds: float,
    processes: int | None = None,
    api_key: str | None = None,
) -> tuple[list[Result], Generator | None]:
    """Ask all endpoints at the same time.

    Args:
        targets: each with the model that it is asked for.
        question: the load of each.
        seconds: that one request may take.
        processes: of the generator; None: as many as the load needs.
        api_key: what every request presents.

    Returns:
        A result for each, in order; how well the generator kept up, where anything was sent.

    Raises:
        AegisError: the prompts cannot be read, or the generator broke down.
    """
    works: list[Work] = []
    problems: dict[str, str] = {}
    for model in dict.fromkeys(model for _, model in targets):
        mine = [target for target, name in targets if name == model]
        try:
            tokens = _learn(mine, model, question, api_key)
        except SiteError as error:
            problems[model] = error.message
            continue
        prompts = question.read_prompts(tokens)
        works += [question.work(target, model, prompts, seconds) for target in mine]
    if not works:
        return [_failed(target, model, problems[model]) for target, model in targets], None
    load = run_load(works, processes=processes or _enough(works), api_key=api_key)
    found = {
        (work.target.address, work.model): _result(work, outcome, load.began)
        for work, outcome in zip(works, load.outcomes, strict=True)
    }
    return [
        found.get((target.address, model)) or _failed(target, model, problems[model])
        for target, model in targets
    ], load.generator


def _learn(targets: Sequence[Target], model: str, question: Question, api_key: str | None) -> Tokens:
    if question.dataset != "random":
        return Tokens()
    problem: SiteError | None = None
    for target in targets[:ASKED]:
        try:
            return learn_tokens(target, model, chat=question.chat, api_key=api_key)
        except SiteError as error:
            problem = problem or error
    raise problem or SiteError(f"nothing serves {model}")


def _enough(works: Sequence[Work]) -> int:
    """Return how many processes the load needs, at most one a core."""
    cores = len(os.sched_getaffinity(0))
    under_way = sum(work.concurrency for work in works)
    return max(processes_for(works, cores), min(cores, -(-under_way // AT_ONCE)))


def _result(work: Work, outcome: Outcome, began: float) -> Result:
    records = outcome.records
    figures = figures_of(measure(records, outcome.ended - began).as_vllm())
    reasons = Counter(error for error in records.errors if error)
    error = ""
    if reasons:
        reason, _ = reasons.most_common(1)[0]
        error = f"{reasons.total()} of {len(records)} requests failed: {reason}"
    return Result(
        endpoint=work.target.address,
        model=work.model,
        node=work.target.node,
        instance=work.target.instance,
        figures=figures,
        error=error,
    )


def _failed(target: Target, model: str, error: str) -> Result:
    return Result(
        endpoint=target.address, model=model, node=target.node, instance=target.instance, error=error
    )
