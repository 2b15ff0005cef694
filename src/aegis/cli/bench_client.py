"""Where `vllm bench serve` runs for `aegis bench`: on which nodes, started by what, in which environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from aegis.bench.roots import is_path, root_of, tokenizer_of
from aegis.bench.serve import METRICS, PROGRAM, endpoint_words, model_words, result_of
from aegis.bench.started import Kind, Order, Run, Steps, Way
from aegis.errors import SiteError
from aegis.fleet.environments import (
    container_command,
    container_environment,
    container_lines,
    setup_lines,
    with_setup,
)
from aegis.fleet.nodes import allocation
from aegis.fleet.services import tied
from aegis.schedulers.base import GROUP_VARIABLE
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platforms import Site, load_platform
from aegis.step import step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.api.targets import Target
    from aegis.bench.report import Result
    from aegis.bench.started import Ended, Launcher
    from aegis.spec.platform import Platform

KEY: Final = "OPENAI_API_KEY"  # what vLLM's client reads
SECRETS: Final = ("HF_TOKEN",)  # of ours that it may need, too
LATE: Final = (KEY, *SECRETS, "no_proxy", "NO_PROXY")  # variables that are in no command
FOR_SSH: Final = ("PATH", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE")  # a far shell may have others
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
FEWEST_AT_ONCE: Final = 8
MOST_ON_A_NODE: Final = 64
LOOK_UP_SECONDS: Final = 60.0  # for modules to load


class Client(NamedTuple):
    """How vLLM's client is to be run."""

    platform: Platform
    conda_env: str | None
    image: str | None
    launcher: str  # or "auto"
    at_once: int | None  # from this machine
    seconds: float  # that one endpoint may take
    shared: Path  # a folder that all nodes see

    @property
    def deployment(self) -> Deployment:
        """A deployment with this environment."""
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        entry = ModelEntry(model="bench")
        return Deployment(models=(entry,), conda_env=self.conda_env, image=self.image, hf_home=home)

    @property
    def setup(self) -> list[str]:
        """Shell lines before the program; none where it is on PATH already, and nothing else was asked for."""
        if not (self.conda_env or self.image) and shutil.which(PROGRAM[0]):
            return []
        return setup_lines(self.deployment, self.platform)


def client_of(how: Mapping[str, Any]) -> Client:
    """Return what the flags ask for.

    Raises:
        DeploymentError: there is no such platform.
    """
    platform = load_platform(how["platform"], Site.here(os.environ))
    folder = how["shared_dir"] or Path.cwd()
    return Client(
        platform,
        how["conda_env"],
        how["image"],
        how["launcher"],
        how["at_once"],
        how["timeout"],
        folder.absolute(),
    )


def is_here(client: Client) -> bool:
    """Tell whether there is a vLLM to be run, as far as this machine can tell."""
    if client.conda_env or client.image or shutil.which(PROGRAM[0]):
        return True
    if not client.setup:
        return False
    look = with_setup(["sh", "-c", f"command -v {PROGRAM[0]}"], client.setup)
    try:
        done = subprocess.run(look, capture_output=True, timeout=LOOK_UP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def places(client: Client, targets: Sequence[Target]) -> tuple[Launcher, list[str]]:
    """Return the launcher, and the node of each endpoint; "" is this machine.

    By itself a site's launcher is taken within an allocation, for endpoints on its nodes.
    """
    wanted = client.launcher
    kind: Any = client.platform.launcher if wanted == "auto" else wanted
    if kind == "local":
        return "local", [""] * len(targets)
    try:
        hosts = allocation(structs.replace(client.platform, launcher=kind), os.environ)
    except SiteError:
        hosts = []
    known = {
        name: host.name
        for host in hosts
        for name in (host.name, _short(host.name), host.address, _short(host.address))
    }
    nodes = []
    for target in targets:
        names = (target.node, target.host, _short(target.node), _short(target.host))
        found = next((known[name] for name in names if name in known), None)
        if found is None and wanted != "auto" and not target.host.startswith("127."):
            found = target.node or target.host
        nodes.append(found or "")
    return (kind if any(nodes) else "local"), nodes


def _short(name: str) -> str:
    return name if name.replace(".", "").isdigit() else name.partition(".")[0]


def run_vllm(
    client: Client,
    targets: Sequence[tuple[Target, str]],
    words: Sequence[str],
    *,
    api_key: str | None,
    say: Callable[[str], None],
    tell: Callable[[int], None],
) -> tuple[list[Result], str]:
    """Run `vllm bench serve` for all endpoints, and return a result for each, in order, and the launcher.

    Args:
        client: how.
        targets: each with the model that it is asked for.
        words: arguments that all get.
        api_key: what every request presents.
        say: hears warnings.
        tell: hears how many have ended.

    Raises:
        SiteError: the folder cannot be made, or no process be started.
    """
    launcher, nodes = places(client, [target for target, _ in targets])
    with _folder(client, launcher) as folder:
        models = list(dict.fromkeys(model for _, model in targets))
        kinds = []
        for model in models:
            asked = next(target for target, name in targets if name == model)
            root = root_of(asked, model, api_key)
            tokenizer, warning = tokenizer_of(model, root, elsewhere=launcher != "local")
            named = model_words(model, tokenizer, words)
            if warning and len(named) == 2 and "--tokenizer" not in words:  # noqa: PLR2004 - the model alone
                say(f"warning: {warning}")
            kinds.append(_kind(client, [*words, *named], tokenizer, folder, launcher))
        runs: dict[str, list[Run]] = {}
        for number, ((target, model), node) in enumerate(zip(targets, nodes, strict=True)):
            run = Run(
                number,
                models.index(model),
                endpoint_words(target, str(folder), f"{number}.json"),
                _no_proxy(target),
            )
            runs.setdefault(node, []).append(run)
        orders = [_order(client, node, mine, say) for node, mine in runs.items()]
        secrets = {name: os.environ[name] for name in SECRETS if name in os.environ}
        secrets |= {KEY: api_key} if api_key else {}
        way = Way(
            launcher=launcher,
            python=sys.executable,
            environ=step_environment(os.environ),
            words=client.platform.launcher_args if client.platform.launcher == launcher else (),
            group=os.environ.get(GROUP_VARIABLE, ""),
            tied=tied,
        )
        try:
            ended = Steps(folder, kinds, orders, secrets, way).run(tell)
        except OSError as error:
            raise SiteError(
                f"{launcher} cannot be started: {error.filename or ''}: {error.strerror}"
            ) from None
        return [
            _result(target, model, ended[number], folder / f"{number}.json", client.seconds)
            for number, (target, model) in enumerate(targets)
        ], launcher


@contextlib.contextmanager
def _folder(client: Client, launcher: str) -> Iterator[Path]:
    """Yield a folder for its owner alone: of this machine, or where all nodes see it."""
    where = None if launcher == "local" else client.shared
    try:
        folder = Path(tempfile.mkdtemp(prefix=".aegis-bench-" if where else "aegis-bench-", dir=where))
    except OSError as error:
        raise SiteError(
            f"{error.filename or where}: {error.strerror}",
            hint="name a folder that all nodes see with --shared-dir",
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kind(client: Client, words: Sequence[str], tokenizer: str | None, folder: Path, launcher: str) -> Kind:
    """Return the beginning of the commands of a model, and their variables."""
    env = dict(OFFLINE) if tokenizer and is_path(tokenizer) else {}
    if client.image:
        folders = [str(folder), *([tokenizer] if tokenizer and is_path(tokenizer) else [])]
        folders += [
            str(Path(path).parent) for path in _after(words, "--dataset-path") if Path(path).is_file()
        ]
        argv = container_command(
            [*PROGRAM, *METRICS, *words], client.deployment, client.platform, str(Path.cwd()), folders
        )
        lines = container_lines(client.deployment, client.platform, LATE)
        return Kind(with_setup(argv, [*client.setup, *lines]), container_environment(env, {}))
    program = shutil.which(PROGRAM[0]) if not client.setup else None
    if launcher == "ssh":
        env |= {name: os.environ[name] for name in FOR_SSH if name in os.environ}
    argv = [program or PROGRAM[0], *PROGRAM[1:], *METRICS, *words]
    return Kind(with_setup(argv, client.setup), env)


def _after(words: Sequence[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == flag]


def _order(client: Client, node: str, runs: list[Run], say: Callable[[str], None]) -> Order:
    if node:
        return Order(node=node, runs=runs, at_once=MOST_ON_A_NODE, seconds=client.seconds)
    at_once = client.at_once or max(FEWEST_AT_ONCE, len(os.sched_getaffinity(0)))
    if at_once < len(runs):
        say(f"{at_once} of {len(runs)} endpoints at a time from this machine (--at-once)")
    return Order(node="", runs=runs, at_once=at_once, seconds=client.seconds)


def _no_proxy(target: Target) -> dict[str, str]:
    """Return variables by which no proxy stands before the endpoint: vLLM's client would take one."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = ",".join(dict.fromkeys([*filter(None, given.split(",")), target.host]))
    return {"no_proxy": names, "NO_PROXY": names}


def _result(target: Target, model: str, ended: Ended, file: Path, seconds: float) -> Result:
    error = ""
    if ended.late:
        error = f"vllm bench serve did not end within {seconds:g} s"
    elif ended.code is None:
        error = ended.reason
    elif ended.code:
        error = f"vllm bench serve ended with {ended.code}" + (f": {ended.reason}" if ended.reason else "")
    said = None
    if not error:
        with contextlib.suppress(OSError):
            said = file.read_bytes()
    return result_of(target, model, said=said, error=error)
