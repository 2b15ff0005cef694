"""Everything that can be known before a job is submitted, in one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.preflight.hub import ask, hub_findings
from aegis.preflight.limits import limits
from aegis.preflight.memory import memory
from aegis.preflight.model import Wish, model
from aegis.preflight.paths import Job, path_questions, paths, ports
from aegis.preflight.source import candidates, find_sources, is_path, questions
from aegis.preflight.weights import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aegis.preflight.files import Files
    from aegis.preflight.finding import Finding
    from aegis.preflight.hub import Answer, Hub
    from aegis.preflight.source import Source
    from aegis.spec.resolve import Resolved

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def findings(
    resolved: Resolved, nodes: int, files: Files, environ: Mapping[str, str], *, hub: Hub | None = ask
) -> list[Finding]:
    """Return every reason that is known not to submit a job.

    Args:
        resolved: what is to be served.
        nodes: of the job.
        files: of the machine that it is submitted from; where they are not seen, neither they nor the hub are asked.
        environ: of the user.
        hub: answers for models that are not there yet; None: nobody is asked.
    """
    job = Job(resolved, files, environ)
    found = [*limits(resolved, nodes), *ports(resolved, nodes)]
    if not files.seen:
        return found
    sources = _sources(job)
    found += paths(job, sources)
    answers: dict[str, Answer] = {}
    for index, source in enumerate(sources):
        wish = Wish.of(resolved, index, environ)
        if source:
            found += model(wish, source.shape) if source.shape else ()
            found += memory(wish, source.shape, source.weights)
        if hub and _is_downloaded(job, wish, source):
            found += _asked(job, wish, source, hub, answers)
    return list(dict.fromkeys(found))


def _sources(job: Job) -> list[Source | None]:
    """Return each model as it was found; the simulated engine loads none."""
    deployment, platform = job.resolved.deployment, job.resolved.platform
    wanted = [
        candidates(entry, deployment, platform, job.environ, job.inside) if entry.engine != "sim" else []
        for entry in deployment.models
    ]
    named = (ask for each in wanted for candidate in each for ask in questions(candidate.path))
    job.files.expect([*path_questions(job), *named])
    return find_sources(job.files, wanted)


def _is_downloaded(job: Job, wish: Wish, source: Source | None) -> bool:
    """Tell whether servers will get the model from the hub that this user asks."""
    entry, deployment, platform = wish.entry, wish.resolved.deployment, wish.resolved.platform
    if entry.engine == "sim" or is_path(entry.model) or deployment.skip_staging:
        return False
    if any(map(wish.is_set, OFFLINE)) or "HF_ENDPOINT" in {**platform.env, **entry.env}:
        return False
    given = entry.model_source
    if given and (not entry.download_weights or job.files.is_dir(job.inside(given))):
        return False
    return not (source and source.loaded) and not job.files.is_dir(job.inside(entry.model))


def _asked(
    job: Job, wish: Wish, source: Source | None, hub: Hub, answers: dict[str, Answer]
) -> Iterator[Finding]:
    """Yield what the hub has against a model; after one silence it is not asked again."""
    name, token = wish.entry.model, wish.resolved.hf_token
    if any(answer.state == "silent" for answer in answers.values()):
        return
    if name not in answers:
        answers[name] = hub(name, job.environ, token.reveal() if token else None)
    has_token = token is not None or job.files.exists(job.token_file)
    elsewhere = source.folder if source else None
    yield from hub_findings(wish, answers[name], has_token=has_token, elsewhere=elsewhere)
    if source is None:
        yield from memory(wish, None, counted(answers[name].parameters))
