"""What an entry of the catalog means as settings of a deployment, on a given platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from aegis.errors import Problem
from aegis.spec.catalog.arguments import as_words, parse_arguments, split_binds
from aegis.spec.catalog.entry import ASSUMED
from aegis.spec.catalog.lookup import SHIPPED
from aegis.spec.resolve import Base, Layer, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.spec.catalog.environment import Environment
    from aegis.spec.platform import Platform

    Exists: TypeAlias = Callable[[str], bool]

SAME = {  # key of an entry -> of a deployment
    "time": "walltime",
    "partition": "queue",
    "account": "account",
    "qos": "qos",
    "cpus_per_task": "cpus_per_node",
    "mem_per_node": "mem_per_node",
    "exclude": "exclude",
    "nodelist": "nodelist",
    "work_dir": "work_dir",
    "log_dir": "log_dir",
    "env": "env",
}
SIZES = {
    "--tensor-parallel-size": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "--data-parallel-size": "data_parallel_size",
}
OWN_ENDPOINTS = Setting("{run_dir}/endpoints.txt", "default")  # one folder, many models: they must not clash
EXECUTOR = "--distributed-executor-backend"
SURROUNDINGS = ("venv", "image", "conda_env")  # each says where the engine is


class Launch(Struct, frozen=True, kw_only=True):
    """One launch of one model: what is known before the platform is."""

    name: str
    layer: Layer  # the entry, with the options that are keys of an entry, or arguments of its engine
    environment: Environment
    engine: str
    arguments: Layer  # what the entry's engine arguments mean
    container: Setting | None  # asked for in the place of a virtual environment
    flags: Mapping[str, Any]
    environ: Mapping[str, str]
    exists: Exists
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def given(self, key: str) -> bool:
        """Tell whether a flag or a variable says something of a key of the deployment."""
        return key in self.flags or bool(self.environ.get(f"AEGIS_{key.upper()}"))

    def suggested(self, key: str) -> bool:
        """Tell whether only the catalog that comes with Aegis says something of a key of the entry."""
        return key in self.layer and self.layer[key].origin.rpartition(":")[0] == str(SHIPPED)


def base_on(platform: Platform, launch: Launch) -> Base:
    """Return what lies below the environment and the flags: the entry, as this platform can run it."""
    problems, warnings = [*launch.problems], [*launch.warnings]
    settings: Layer = {
        "served_model_name": Setting(launch.name, launch.layer["model_family"].origin),
        "engine": launch.layer.get("engine", Setting("vllm", "default")),
        "endpoints_file": OWN_ENDPOINTS,
    }
    settings |= {SAME[key]: setting for key, setting in launch.layer.items() if key in SAME}
    settings |= _from_variables(launch, settings)
    settings |= launch.arguments
    settings |= _shape(platform, launch)
    settings |= _weights(platform, launch, problems, warnings)
    settings |= _surroundings(launch, problems)
    return Base(settings, tuple(problems), tuple(warnings))


def read_arguments(
    layer: Layer, engine: str, given: Setting | None, flags: dict[str, Any], problems: list[Problem]
) -> tuple[Layer, Setting]:
    """Return what the engine arguments of an entry mean, and all of them together.

    Args:
        layer: the entry.
        engine: whose arguments count.
        given: those of the command line; what they mean is put into `flags`.
        flags: of the command line.
        problems: gets what is wrong.
    """
    own = layer.get(f"{engine}_args", Setting({}, "default"))
    asked: dict[str, Any] = {}
    if given:
        try:
            asked = parse_arguments(given.value, engine)
        except ValueError as error:
            problems.append(Problem(given.origin, str(error)))
    settings = _meaning(own.value, own.origin)
    for key, setting in _meaning(asked, given.origin if given else "").items():
        if flags.get(key) not in (None, setting.value):
            flag = f"--{key.replace('_', '-')}"
            problems.append(
                Problem(flag, f"{flag} {flags[key]} and {setting.origin} disagree", "give one of them")
            )
        flags[key] = setting
    origin = ", ".join(each.origin for each in (own, given) if each and each.value)
    merged = Setting({**own.value, **asked}, origin)
    extra = f"extra_{engine}_args"
    theirs = {flag: value for flag, value in merged.value.items() if not _is_ours(flag, value)}
    words = Setting(as_words(theirs, engine), origin)
    if given and flags.get(extra):
        said = f"{given.origin} and --extra-{engine}-args are both given"
        problems.append(Problem(given.origin, said, "give one of them"))
    elif given:
        flags[extra] = words
    elif words.value:
        settings[extra] = words
    return settings, merged


def _meaning(arguments: Mapping[str, Any], origin: str) -> Layer:
    """Return the keys of a deployment that engine arguments set."""
    found = {SIZES[flag]: Setting(value, origin) for flag, value in arguments.items() if flag in SIZES}
    if _is_ours(EXECUTOR, arguments.get(EXECUTOR)):
        found["distributed_executor"] = Setting(arguments[EXECUTOR], origin)
    return found


def _is_ours(flag: str, value: Any) -> bool:
    return flag in SIZES or (flag == EXECUTOR and value in ("mp", "ray"))


def _from_variables(launch: Launch, settings: Layer) -> Layer:
    """Return what environment.yaml takes from variables, where nothing else says it."""
    return {
        key: Setting(launch.environ[variable], variable)
        for key, variable in launch.environment.variables.items()
        if key in SAME.values() and key not in settings and launch.environ.get(variable)
    }


def _shape(platform: Platform, launch: Launch) -> Layer:
    """Return nodes and devices per node.

    Those of the catalog that comes with Aegis are made for small shared nodes. Where a job has whole nodes and the platform
    knows them, the servers are placed by their parallel sizes alone; so are several instances, which no entry speaks of.
    Simulated servers need no devices.
    """
    layer, several = launch.layer, launch.given("instances")
    known = bool(platform.node.devices) or platform.launcher == "local"
    whole = known and not platform.shared_nodes
    found: Layer = {}
    simulated = launch.engine == "sim"
    if not simulated and not (launch.suggested("gpus_per_node") and whole) and not (several and known):
        found["gpus_per_node"] = layer["gpus_per_node"]
    if not (launch.suggested("num_nodes") and whole) and not several:
        found["nodes"] = layer["num_nodes"]
    kind = layer.get("resource_type")
    if kind and (platform.gpu_type or not launch.suggested("resource_type")):
        found["resource_type"] = kind
    return found


def _weights(platform: Platform, launch: Launch, problems: list[Problem], warnings: list[str]) -> Layer:
    """Return the model as the engine will load it: a directory where its weights are, else its id on the Hub."""
    hub, told = launch.layer.get("hf_model"), launch.layer.get("model_weights_parent_dir")
    usual = Setting(platform.weights_dir or ASSUMED["model_weights_parent_dir"], f"platform {platform.name}")
    parent = told or usual
    model = {"model": hub or Setting(launch.name, launch.layer["model_family"].origin)}
    if any(launch.given(key) for key in ("model_source", "skip_staging")) or launch.engine == "sim":
        return model
    names = [launch.name, *([f"models--{hub.value.replace('/', '--')}"] if hub else [])]
    for folder in (f"{parent.value}/{name}" for name in names):
        if launch.exists(folder):
            if hub and hub.origin == "--hf-model":
                warnings.append(f"--hf-model is passed over: the weights are in {folder}")
            return {**model, "model_source": Setting(folder, parent.origin)}
    if not hub:
        said = f"the weights of {launch.name} are not in {parent.value}"
        problems.append(Problem(parent.origin, said, "give --model-weights-parent-dir, or --hf-model"))
    elif told:
        warnings.append(f"{told.origin}: no {launch.name} in {told.value}: the engine will load {hub.value}")
    return model


def _surroundings(launch: Launch, problems: list[Problem]) -> Layer:
    """Return where the engine is: a virtual environment, or an image with what it needs."""
    if launch.engine == "sim":
        return {}
    container = launch.container
    if container is None and not launch.given("image"):
        if any(map(launch.given, SURROUNDINGS)):
            return {}
        place = launch.layer.get("venv")
        if place and place.value not in launch.environment.containers:
            return {"venv": place}
        container = place
    found: Layer = {}
    image = launch.environment.image(launch.engine)
    if not launch.given("image"):
        if launch.engine not in launch.environment.images and not launch.exists(image.value):
            if container:
                said = f"`{container.value}` runs the engine from an image, and none is known for {launch.engine}"
                hint = f"give --image, or `{launch.engine}_image_path` in environment.yaml"
                problems.append(Problem(container.origin, said, hint))
            return {}  # whatever the job finds on its PATH
        found["image"] = image
    if binds := launch.layer.get("bind"):
        found["bind"] = Setting(split_binds(binds.value), binds.origin)
    if launch.environment.modules:
        found["modules"] = launch.environment.modules
    return found
