"""Which files a plan is written down as, by path: the guide's tree, and what Aegis takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from msgspec.structs import replace

from aegis.planner.emit import trtllm
from aegis.planner.emit.choice import served_by_aegis
from aegis.planner.emit.deployment import Memory, deployment_of
from aegis.planner.emit.experiment import experiment_document
from aegis.planner.emit.flags import sglang_flags, vllm_flags
from aegis.planner.emit.kubernetes import manifests
from aegis.planner.emit.names import distinct_names
from aegis.planner.emit.nodes import allocate
from aegis.planner.emit.rehearsal import rehearsal
from aegis.planner.emit.servers import servers_of
from aegis.planner.emit.shell import node_script
from aegis.planner.emit.step_times import step_times
from aegis.planner.emit.text import to_yaml
from aegis.planner.estimator import CORRECTED
from aegis.planner.models.resolve import served_from
from aegis.planner.operations import NoData
from aegis.planner.problem import WorkerSearch
from aegis.planner.report.csv import best_csv, pareto_csv
from aegis.planner.report.page import page
from aegis.planner.report.picture import picture
from aegis.planner.solve import Parts
from aegis.planner.systems import load_system
from aegis.spec.platform import Node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aegis.planner.answer import Candidate, ModeAnswer
    from aegis.planner.emit.choice import Choice
    from aegis.planner.emit.servers import Server
    from aegis.planner.plan import Plan
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.task import Experiment
    from aegis.spec.platform import Platform

Files: TypeAlias = dict[str, str | bytes]  # by path below the folder

AEGIS = "aegis.yaml"
AEGIS_PAIR = "aegis-disagg.yaml"
PAIR = (
    "First entry: prefill servers, second entry: decode servers.",
    (
        "Aegis starts both and hands nothing from one to the other: put a router for disaggregated vLLM in front, which "
        "sends each request to a prefill server with max_tokens 1, and then, with the kv_transfer_params that it got, to "
        "a decode server."
    ),
)
NEWEST = {"trtllm": trtllm.NEWEST, "vllm": "0.24.0", "sglang": "0.5.16"}  # where the plan rests on no tables


class Tree:
    """The files of one plan."""

    def __init__(
        self, plan: Plan, folder: Path, *, version: str | None = None, platform: Platform | None = None
    ) -> None:
        """Take the plan and the folder where its files will lie; `version` and `platform` as `save.save` has them."""
        self._plan = plan
        self._folder = folder
        self._version = version
        self._platform = platform
        self._parts = Parts()

    def files(self, top_n: int) -> Files:
        """Return all files."""
        plan = self._plan
        found: Files = {"pareto_frontier.png": picture(plan), "pareto_frontier.html": page(plan)}
        folders = distinct_names([each.name for each in plan.experiments])
        for index, (folder, answer) in enumerate(zip(folders, plan.answers, strict=True)):
            found |= {
                f"{folder}/{name}": text
                for name, text in _tables(plan.experiments[index], answer, top_n).items()
            }
            for rank, candidate in enumerate(answer.best[:top_n], start=1):
                top = f"{folder}/top{rank}"
                files = self._configuration(index, candidate, self._folder / top)
                found |= {f"{top}/{name}": content for name, content in files.items()}
        if plan.chosen is not None and top_n:
            found[AEGIS] = found[f"{folders[plan.chosen]}/top1/{AEGIS}"]
        return found

    def _configuration(self, index: int, candidate: Candidate, folder: Path) -> Files:
        """Return the files of one configuration."""
        experiment = self._plan.experiments[index]
        servers = _servers(experiment, candidate)
        version = self._version or servers[0].version or NEWEST[servers[0].backend]
        choice = served_by_aegis(self._plan, index, candidate)
        own = choice._replace(experiment=experiment, candidate=candidate, planned=True)
        files = _engine_files(servers, own, version)
        files["generator_config.yaml"] = to_yaml(_facts(experiment, servers, own.replicas, version))
        if candidate.mode == "disagg" and servers[0].backend != "sglang":
            files[AEGIS_PAIR] = self._pair(own, servers)
        return files | self._aegis(choice, folder)

    def _aegis(self, choice: Choice, folder: Path) -> Files:
        """Return the deployment that Aegis takes, and its rehearsal where its step times are known."""
        (server,) = _servers(choice.experiment, choice.candidate)
        deployed = deployment_of(
            (server,), choice.replicas, self._platform, _memory(choice.experiment, choice.candidate)
        )
        files: Files = {AEGIS: deployed.to_yaml((*choice.head(), *(f"- {note}" for note in choice.notes)))}
        workers = choice.candidate.workers[0]
        kinds = [kind for search in choice.experiment.searches for kind in search]
        same = (workers.system, workers.backend)
        search = WorkerSearch(
            wide=next((each.wide for each in kinds if (each.system, each.backend) == same), ()),
            system=workers.system,
            backend=cast("Backend", workers.backend),
            version=workers.version or None,
            quantization=workers.quantization,
            splits=(workers.parallel,),
        )
        try:
            times = step_times(
                self._parts.workers(search, choice.experiment)[0],
                choice.experiment.load,
                requests=workers.batch,
                context_tokens=choice.candidate.context_tokens,
                source=" ".join(choice.head()),
            )
        except NoData:
            return files
        node = self._platform.node if self._platform else Node()
        node = replace(node, devices=node.devices or server.gpus_per_node)
        return files | rehearsal(server, choice.replicas, times, node, folder)

    def _pair(self, choice: Choice, servers: Sequence[Server]) -> str:
        """Return the prefill and the decode servers as two groups of one deployment."""
        head = (*choice.head(), *PAIR)
        return deployment_of(
            servers, choice.replicas, self._platform, _memory(choice.experiment, choice.candidate)
        ).to_yaml(head)


def _tables(experiment: Experiment, answer: ModeAnswer, top_n: int) -> Files:
    """Return what was found, and what was asked."""
    backend = answer.best[0].workers[0].backend if answer.best else experiment.searches[0][0].backend
    rules = experiment.estimator
    how = "" if rules == CORRECTED else f" --estimator {rules.name}"
    head = (f"The experiment without gaps: aegis plan exp --yaml_path config.yaml{how}",)
    return {
        "best_config_topn.csv": best_csv(experiment, answer, top_n),
        "pareto.csv": pareto_csv(experiment, answer),
        "config.yaml": to_yaml(experiment_document(experiment, backend), head=head),
    }


def _servers(experiment: Experiment, candidate: Candidate) -> tuple[Server, ...]:
    system = _system(experiment, candidate.workers[0].system)
    model = served_from(experiment.model_name)
    return servers_of(experiment, candidate, model=model, gpus_per_node=system.gpus_per_node)


def _system(experiment: Experiment, name: str) -> System:
    return load_system(name, era="guide" if experiment.estimator.rules == "guide" else "current")


def _memory(experiment: Experiment, candidate: Candidate) -> Memory:
    """Return the memory of the fullest kind of workers."""
    fullest = max(candidate.workers, key=lambda each: each.memory)
    there = _system(experiment, fullest.system).memory_capacity / 2**30
    return Memory(fullest.memory, there, fullest.system)


def _engine_files(servers: Sequence[Server], choice: Choice, version: str) -> Files:
    """Return what the engines themselves take: settings, a script for each node, and manifests."""
    mode, backend = choice.candidate.mode, servers[0].backend
    said = (*choice.head(), f"For {backend} {version}.")
    settings: dict[str, dict[str, Any]] = {}
    for server in servers:
        if backend == "trtllm":
            settings[server.config_file] = trtllm.engine_config(server, version)
        else:
            settings[server.config_file] = dict((vllm_flags if backend == "vllm" else sglang_flags)(server))
    files: Files = {f"{mode}/{name}": to_yaml(content, head=said) for name, content in settings.items()}
    for number, places in enumerate(allocate(servers, choice.replicas)):
        files[f"{mode}/node_{number}_run.sh"] = node_script(places, number, model=servers[0].model, said=said)
    manifest = manifests(servers, choice.replicas, version=version, files=settings, head=said)
    return files | {f"{mode}/k8s_deploy.yaml": manifest}


def _facts(experiment: Experiment, servers: Sequence[Server], replicas: int, version: str) -> dict[str, Any]:
    """Return generator_config.yaml: what the other files of a configuration were made from."""
    load, targets = experiment.load, experiment.targets
    return {
        "backend": servers[0].backend,
        "backend_version": version,
        "ServiceConfig": {
            "model_path": servers[0].model,
            "served_model_name": servers[0].model,
            "port": 8000,
        },
        "WorkerConfig": {
            "replicas": replicas,
            **{f"{each.role}_workers": each.count for each in servers},
            **{f"{each.role}_gpus_per_worker": each.gpus for each in servers},
        },
        "SlaConfig": {"isl": load.isl, "osl": load.osl, "ttft": targets.ttft, "tpot": targets.tpot},
        "NodeConfig": {"system_name": servers[0].system, "num_gpus_per_node": servers[0].gpus_per_node},
        "params": {each.role: _parameters(each) for each in servers},
    }


def _parameters(server: Server) -> dict[str, Any]:
    split = server.split
    return {
        "tensor_parallel_size": split.tp,
        "pipeline_parallel_size": split.pp,
        "data_parallel_size": split.dp,
        "moe_tensor_parallel_size": split.moe_tp,
        "moe_expert_parallel_size": split.moe_ep,
        "max_batch_size": server.max_requests,
        "max_num_tokens": server.step_tokens,
        "max_seq_len": server.max_length,
        "kv_cache_dtype": server.kv_cache,
    }
