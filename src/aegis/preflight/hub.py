"""Ask the Hugging Face Hub whether a model is there, and whether this user may have it. A hub that is silent says nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct

from aegis.errors import Problem
from aegis.preflight.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from aegis.preflight.model import Wish

ENDPOINT = "https://huggingface.co"
TIMEOUT = 3.0  # seconds; a login node without a way out would wait for minutes
MOST = 4 * 1024 * 1024  # bytes of an answer
NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
REFUSED = (401, 403)
MISSING = 404
SCHEMES = ("http", "https")
State: TypeAlias = Literal["open", "gated", "denied", "unknown", "silent"]


class Answer(Struct, frozen=True):
    """What the hub says of a model."""

    state: Literal[
        "open", "gated", "denied", "unknown", "silent"
    ]  # denied: gated, and this token may not have it
    parameters: dict[str, int] = {}  # by data type, of its safetensors files


Hub: TypeAlias = "Callable[[str, Mapping[str, str], str | None], Answer]"


class _Info(Struct):
    """The part of a model's description that matters here."""

    gated: bool | str = False
    safetensors: Any = None


def ask(model: str, environ: Mapping[str, str], token: str | None) -> Answer:
    """Ask the hub for a model.

    Args:
        model: a name of the hub.
        environ: HF_ENDPOINT and the proxies.
        token: sent to the hub's own host, and to no other.
    """
    url = f"{endpoint(environ)}/api/models/{quote(model)}"
    if not NAME.fullmatch(model):
        return Answer("unknown")
    status, content = _get(url, environ, token)
    if status in (MISSING, *REFUSED):  # without a token the hub says 401 of a model that does not exist
        return Answer("unknown")
    try:
        info = msgspec.json.decode(content, type=_Info)
    except (msgspec.DecodeError, RecursionError):  # nothing, or the page of somebody else's proxy
        return Answer("silent")
    state: State = "open"
    if info.gated and not token:
        state = "gated"
    elif info.gated and _get(f"{url}/auth-check", environ, token)[0] in REFUSED:
        state = "denied"
    return Answer(state, _parameters(info.safetensors))


def endpoint(environ: Mapping[str, str]) -> str:
    """Return the address of the hub."""
    return (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def hub_findings(wish: Wish, answer: Answer, *, has_token: bool, elsewhere: str | None) -> Iterator[Finding]:
    """Yield what the hub's answer means for a model.

    Args:
        wish: the model.
        answer: of the hub.
        has_token: whether servers will have one.
        elsewhere: where the site has the same model, if it does.
    """
    entry, where = wish.entry, wish.where("model")
    page = f"{endpoint(wish.environ)}/{entry.model}"
    there = f"; or set `model_source: {elsewhere}`" if elsewhere else ""
    if answer.state == "gated" and not has_token:
        said = f"{entry.model} is gated, and there is no token"
        hint = f"ask for access at {page} and export HF_TOKEN{there}"
        yield Finding(Problem(where, said, hint), certain=True)
    elif answer.state == "denied":
        said = f"{entry.model} is gated, and HF_TOKEN was not granted access to it"
        yield Finding(Problem(where, said, f"ask for access at {page}{there}"), certain=False)
    elif answer.state == "unknown":
        said = f"the hub has no model {entry.model}" + (
            " that HF_TOKEN may see" if has_token else ", or it is private"
        )
        hint = f"look at {page}, or give `model_source`{there}"
        yield Finding(Problem(where, said, hint), certain=False)


def _get(url: str, environ: Mapping[str, str], token: str | None) -> tuple[int, bytes]:
    """Return status and body; 0 and nothing where nobody answers in time."""
    from threading import Thread  # noqa: PLC0415 - start-up time

    answers: list[tuple[int, bytes]] = []
    # A thread, since the time-out of a socket covers neither the look-up of a name nor an answer that only trickles in.
    thread = Thread(target=lambda: answers.append(_fetch(url, environ, token)), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return answers[0] if answers else (0, b"")


def _fetch(url: str, environ: Mapping[str, str], token: str | None) -> tuple[int, bytes]:
    import urllib.error  # noqa: PLC0415 - 40 ms, and only models that are not here are asked for
    import urllib.request  # noqa: PLC0415 - as above
    from http.client import HTTPException  # noqa: PLC0415 - as above

    class SameHost(urllib.request.HTTPRedirectHandler):
        """A model that was renamed is followed; a token is not carried to another host."""

        def redirect_request(self, req: Any, *rest: Any) -> urllib.request.Request | None:
            old, new = urlsplit(url), urlsplit(rest[-1])
            same = (old.scheme, old.netloc) == (new.scheme, new.netloc)
            return super().redirect_request(req, *rest) if same else None

    headers = {"User-Agent": "aegis"}
    try:
        proxies = _proxies(url, environ)
        if token and "http" not in proxies:  # which would read it
            headers["Authorization"] = f"Bearer {token}"
        if urlsplit(url).scheme not in SCHEMES:
            return 0, b""
        opener = urllib.request.build_opener(SameHost, urllib.request.ProxyHandler(proxies))
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http or https
        with opener.open(request, timeout=TIMEOUT) as answer:
            return answer.status, answer.read(MOST)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""
    except (OSError, HTTPException, ValueError):  # no way out, no such host, nonsense
        return 0, b""


def _proxies(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the proxy for a URL, as the environment has it."""
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # noqa: PLC0415 - as above

    def value(name: str) -> str:
        return environ.get(name) or environ.get(name.upper()) or ""

    scheme, host = urlsplit(url).scheme, urlsplit(url).netloc.rpartition("@")[2]
    proxy = value(f"{scheme}_proxy") or value("all_proxy")
    direct = proxy_bypass_environment(host, {"no": value("no_proxy")})
    return {scheme: proxy} if proxy.startswith(SCHEMES) and not direct else {}


def _parameters(safetensors: Any) -> dict[str, int]:
    match safetensors:
        case {"parameters": dict(counts)}:
            return {kind: count for kind, count in counts.items() if isinstance(count, int)}
    return {}
