"""A model of the catalog with vec-inf's launch options, as a deployment, on several platforms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import DeploymentError, NotFoundError
from aegis.preflight import check_entry
from aegis.spec.catalog.launch import Wishes, resolve_model
from aegis.spec.catalog.lookup import Catalog, load_catalog
from aegis.spec.platforms import BUILT_IN, Site

if TYPE_CHECKING:
    from aegis.spec.resolve import Resolved

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
SITE = Site((BUILT_IN,), "laptop", lambda command: command == "sbatch")
LLAMA_8B, LLAMA_70B, LARGE = (
    "Meta-Llama-3.1-8B-Instruct",
    "Meta-Llama-3.1-70B-Instruct",
    "Mistral-Large-Instruct-2411",
)
ENTRY = "{model_family: F, model_type: LLM, gpus_per_node: 1, num_nodes: 1, vocab_size: 10%s}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launched(
    name: str,
    *,
    catalog: Catalog | None = None,
    environ: dict[str, str] | None = None,
    there: tuple[str, ...] = (),
    wishes: dict[str, str] | None = None,
    **flags: Any,
) -> Resolved:
    return resolve_model(
        name,
        catalog or load_catalog({}, shared=Path("/nowhere")),
        Wishes(**(wishes or {})),
        flags,
        environ or {},
        site=SITE,
        check=check_entry,
        exists=lambda path: path in there,
    )


def refused(name: str, **given: Any) -> list[str]:
    with pytest.raises(DeploymentError) as error:
        launched(name, **given)
    return [str(problem) for problem in error.value.problems]


def own(tmp_path: Path, more: str = "", environment: str = "") -> Catalog:
    """Return a catalog with a model `own`, and an environment.yaml."""
    (tmp_path / "models.yaml").write_text(f"models: {{own: {ENTRY % more}}}\n")
    (tmp_path / "environment.yaml").write_text(environment or "{}\n")
    return load_catalog({"VEC_INF_CONFIG_DIR": str(tmp_path)}, shared=Path("/nowhere"))


def test_an_entry_becomes_a_deployment() -> None:
    found = launched(LARGE)
    deployment, (model,) = found.deployment, found.deployment.models
    assert (model.model, model.served_model_name) == (f"mistralai/{LARGE}", LARGE)
    assert (model.tensor_parallel_size, model.pipeline_parallel_size, model.engine) == (4, 2, "vllm")
    assert model.extra_vllm_args == ("--max-model-len", "32768")
    assert (deployment.nodes, deployment.gpus_per_node, deployment.resource_type) == (2, 4, None)
    assert (deployment.platform, deployment.walltime) == ("generic-slurm", "01:00:00")
    assert re.search(r"models\.yaml:\d+$", found.origins["models[0].tensor_parallel_size"])
    assert found.entry
    assert found.entry.model_family == "Mistral"


def test_every_key_of_an_entry_has_its_place(tmp_path: Path) -> None:
    more = (
        ", cpus_per_task: 8, mem_per_node: 1.5T, account: a, work_dir: /w, qos: q, time: 1-00:00:00, partition: p,"
        " resource_type: a40, exclude: n1, nodelist: n2, bind: '/a:/b,/c', venv: /v, log_dir: /l, hf_model: o/m,"
        " engine: sglang, sglang_args: {--tp: 1, --x: true}, env: {A: 1}"
    )
    found = launched("own", catalog=own(tmp_path, more))
    deployment, (model,) = found.deployment, found.deployment.models
    assert {
        "cpus_per_node": 8,
        "mem_per_node": "1536G",
        "account": "a",
        "work_dir": "/w",
        "qos": "q",
        "walltime": "24:00:00",
        "queue": "p",
        "resource_type": "a40",
        "exclude": "n1",
        "nodelist": "n2",
        "venv": "/v",
        "log_dir": "/l",
        "nodes": 1,
        "gpus_per_node": 1,
    }.items() <= {key: getattr(deployment, key) for key in deployment.__struct_fields__}.items()
    assert (model.engine, model.extra_sglang_args, model.env) == ("sglang", ("--x",), {"A": "1"})
    assert found.origins["queue"] == f"{tmp_path / 'models.yaml'}:1"


def test_flags_beat_variables_beat_the_entry_beats_the_platform(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", time: 02:00:00, partition: entry, account: entry")
    environ = {"AEGIS_QUEUE": "variable", "AEGIS_ACCOUNT": "variable"}
    found = launched("own", catalog=catalog, environ=environ, wishes={"hf_model": "o/m"}, account="flag")
    deployment = found.deployment
    assert (deployment.walltime, deployment.queue, deployment.account) == ("02:00:00", "variable", "flag")
    assert (found.origins["queue"], found.origins["account"]) == ("AEGIS_QUEUE", "--account")


def test_a_variable_names_no_other_model() -> None:
    found = launched(LLAMA_8B, environ={"AEGIS_MODEL": "other"})
    assert found.deployment.models[0].model == "meta-llama/Llama-3.1-8B-Instruct"


# --------------------------------------------------------------------------------------------- engine arguments


def test_engine_arguments_of_the_command_line_merge_with_the_entrys() -> None:
    text = '--max-model-len=8192,--compilation-config={"a":1,"b":[1,2]},--enable-prefix-caching'
    found = launched(LLAMA_70B, wishes={"vllm_args": text})
    (model,) = found.deployment.models
    assert model.extra_vllm_args == (
        *("--max-model-len", "8192", "--compilation-config", '{"a":1,"b":[1,2]}', "--enable-prefix-caching"),
    )
    assert model.tensor_parallel_size == 4
    assert re.search(r"models\.yaml:\d+, --vllm-args$", found.origins["models[0].extra_vllm_args"])
    assert found.entry
    assert found.entry.vllm_args["--max-model-len"] == "8192"


def test_parallel_sizes_given_as_engine_arguments_beat_variables() -> None:
    found = launched(
        LLAMA_8B,
        wishes={"vllm_args": "-tp=2"},
        environ={"AEGIS_TENSOR_PARALLEL_SIZE": "4"},
        gpus_per_node="2",
    )
    assert found.deployment.models[0].tensor_parallel_size == 2
    assert found.origins["models[0].tensor_parallel_size"] == "--vllm-args"


def test_ray_is_asked_for_as_vllm_has_it() -> None:
    found = launched(LARGE, wishes={"vllm_args": "--distributed-executor-backend=ray"})
    assert found.deployment.models[0].distributed_executor == "ray"
    assert "ray" not in found.deployment.models[0].extra_vllm_args


def test_the_engine_follows_from_its_arguments() -> None:
    found = launched(LLAMA_8B, wishes={"sglang_args": "--context-length=8192,--tp-size=1"})
    (model,) = found.deployment.models
    assert (model.engine, model.extra_sglang_args) == ("sglang", ("--context-length", "8192"))
    assert found.origins["models[0].engine"] == "--sglang-args"


def test_another_engine_has_its_own_arguments() -> None:
    (model,) = launched(LLAMA_70B, engine="sglang").deployment.models
    assert (model.extra_sglang_args, model.extra_vllm_args) == (("--context-length", "65536"), ())
    assert model.tensor_parallel_size == 4


@pytest.mark.parametrize("name", [LLAMA_70B, "Llama-3.2-90B-Vision-Instruct"])
def test_a_simulated_server_is_as_large_as_the_real_one(name: str) -> None:
    deployment = launched(name, engine="sim").deployment
    assert deployment.gpus_per_node is None
    assert launched(name, engine="sim", gpus_per_node=4).deployment.gpus_per_node == 4
    (model,) = deployment.models
    assert (model.engine, model.devices) == ("sim", {LLAMA_70B: 4}.get(name, 8))
    assert model.model_source is None


def test_a_launch_with_engine_arguments_can_be_rehearsed() -> None:
    for arguments in ({"vllm_args": "-tp=2,--x"}, {"sglang_args": "--tp=2,--x"}):
        (model,) = launched(LLAMA_8B, engine="sim", wishes=arguments).deployment.models
        assert (model.engine, model.tensor_parallel_size) == ("sim", 2)
        assert ("--x",) in (model.extra_vllm_args, model.extra_sglang_args)


def test_launches_from_one_folder_do_not_clash() -> None:
    assert launched(LLAMA_8B).deployment.endpoints_file == "{run_dir}/endpoints.txt"
    assert launched(LLAMA_8B, endpoints_file="mine").deployment.endpoints_file == "mine"
    environ = {"AEGIS_ENDPOINTS_FILE": "theirs"}
    assert launched(LLAMA_8B, environ=environ).deployment.endpoints_file == "theirs"


def test_false_turns_a_flag_of_vllm_off(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", hf_model: o/m, vllm_args: {--enable-prefix-caching: false, --x: true}")
    assert launched("own", catalog=catalog).deployment.models[0].extra_vllm_args == (
        "--no-enable-prefix-caching",
        "--x",
    )


@pytest.mark.parametrize(
    ("wishes", "flags", "said"),
    [
        ({"vllm_args": "--a=1", "sglang_args": "--b=1"}, {}, "--sglang-args: --vllm-args is given too"),
        ({"vllm_args": "--a=1"}, {"engine": "sglang"}, "--vllm-args: the engine is sglang"),
        ({"vllm_args": "a=1"}, {}, "--vllm-args: `a=1` is no flag"),
        ({"vllm_args": "--a={"}, {}, "--vllm-args: a bracket is left open"),
        (
            {"vllm_args": "-tp=x"},
            {},
            "--vllm-args: `tensor_parallel_size` should be a whole number, not `x`",
        ),
        ({"vllm_args": "-tp"}, {}, "--vllm-args: `tensor_parallel_size` should be a whole number"),
        (
            {"vllm_args": "-tp=2"},
            {"tensor_parallel_size": "4"},
            "--tensor-parallel-size 4 and --vllm-args disagree",
        ),
        (
            {"vllm_args": "--a"},
            {"extra_vllm_args": ("--b",)},
            "--vllm-args and --extra-vllm-args are both given",
        ),
        ({"vllm_args": "--port=1"}, {}, "`--port` of Meta-Llama-3.1-8B-Instruct is set by aegis"),
        ({"vllm_args": "--api-key=s"}, {}, "`--api-key` would show a secret"),
        ({}, {"engine": "vlm"}, "`engine` cannot be `vlm`"),
        ({}, {"model": "x"}, "--model: the model is Meta-Llama-3.1-8B-Instruct already"),
        ({}, {"walltime": "8"}, "--walltime: `8` is no walltime"),
        ({}, {"mem_per_node": "64"}, "--mem-per-node: `64` is no amount of memory"),
        ({}, {"platform": "auora"}, "did you mean `aurora`?"),
    ],
)
def test_what_cannot_be_is_told(wishes: dict[str, str], flags: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in refused(LLAMA_8B, wishes=wishes, **flags))


def test_all_problems_come_at_once() -> None:
    found = refused(LLAMA_8B, wishes={"vllm_args": "-tp=x"}, walltime="8", nodes="many", mem_per_node="1")
    assert [problem.partition(":")[0] for problem in found] == [
        "--mem-per-node",
        "--nodes",
        "--vllm-args",
        "--walltime",
    ]


# ---------------------------------------------------------------------------------------------------- the shape


@pytest.mark.parametrize("flags", [{"gpus_per_node": "4"}, {"nodes": "2"}, {"tensor_parallel_size": "2"}])
def test_devices_and_parallel_sizes_have_to_agree(flags: dict[str, str]) -> None:
    (problem,) = refused(LLAMA_8B, **flags)
    assert "devices are asked for, and Meta-Llama-3.1-8B-Instruct takes" in problem
    assert "tensor" in problem


def test_totals_need_not_be_powers_of_two(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", hf_model: o/m, vllm_args: {-tp: 3}")
    assert launched("own", catalog=catalog, gpus_per_node="3").deployment.gpus_per_node == 3


def test_a_shipped_shape_gives_way_to_whole_nodes() -> None:
    deployment = launched(LARGE, platform="aurora", account="a", walltime="01:00:00").deployment
    assert (deployment.nodes, deployment.gpus_per_node) == (None, None)
    assert deployment.models[0].devices == 8


def test_a_users_own_shape_stays(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", hf_model: o/m")
    assert launched("own", catalog=catalog, platform="aurora").deployment.gpus_per_node == 1


def test_a_shape_is_for_one_instance() -> None:
    deployment = launched(LLAMA_8B, instances="3").deployment
    assert (deployment.nodes, deployment.gpus_per_node) == (None, 1)
    deployment = launched(LLAMA_8B, instances="3", platform="killarney").deployment
    assert (deployment.nodes, deployment.gpus_per_node) == (None, None)


def test_a_shipped_type_of_device_is_for_sites_that_name_them() -> None:
    assert launched("Kimi-K2-Instruct").deployment.resource_type is None
    assert launched("Kimi-K2-Instruct", platform="killarney").deployment.resource_type == "h100"


# --------------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize(
    ("there", "wishes", "flags", "source"),
    [
        ((), {}, {}, None),
        ((f"/model-weights/{LLAMA_8B}",), {}, {}, f"/model-weights/{LLAMA_8B}"),
        ((f"/mine/{LLAMA_8B}",), {"model_weights_parent_dir": "/mine"}, {}, f"/mine/{LLAMA_8B}"),
        (
            ("/flare/datasets/model-weights/hub/models--meta-llama--Llama-3.1-8B-Instruct",),
            {},
            {"platform": "aurora"},
            "/flare/datasets/model-weights/hub/models--meta-llama--Llama-3.1-8B-Instruct",
        ),
        ((f"/model-weights/{LLAMA_8B}",), {}, {"model_source": "/given"}, "/given"),
    ],
)
def test_weights_are_found_where_they_are(
    there: tuple[str, ...], wishes: dict[str, str], flags: dict[str, Any], source: str | None
) -> None:
    (model,) = launched(LLAMA_8B, there=there, wishes=wishes, **flags).deployment.models
    assert (model.model, model.model_source) == ("meta-llama/Llama-3.1-8B-Instruct", source)
    assert model.name == LLAMA_8B


def test_weights_that_are_here_go_before_the_hub() -> None:
    found = launched(LLAMA_8B, there=(f"/model-weights/{LLAMA_8B}",), wishes={"hf_model": "o/m"})
    assert found.deployment.models[0].model_source == f"/model-weights/{LLAMA_8B}"
    assert found.warnings == (f"--hf-model is passed over: the weights are in /model-weights/{LLAMA_8B}",)


def test_a_directory_without_the_weights_is_warned_of() -> None:
    (warning,) = launched(LLAMA_8B, wishes={"model_weights_parent_dir": "/mine"}).warnings
    assert warning == (
        f"--model-weights-parent-dir: no {LLAMA_8B} in /mine: the engine will load meta-llama/Llama-3.1-8B-Instruct"
    )


def test_weights_that_are_nowhere_are_a_problem(tmp_path: Path) -> None:
    (problem,) = refused("own", catalog=own(tmp_path))
    assert problem == (
        "platform generic-slurm: the weights of own are not in /model-weights"
        " (give --model-weights-parent-dir, or --hf-model)"
    )


@pytest.mark.parametrize(
    ("name", "there", "wishes", "model"),
    [
        ("My-Own-1B", ("/model-weights/My-Own-1B",), {}, "My-Own-1B"),
        ("My-Own-1B", ("/w/My-Own-1B",), {"model_weights_parent_dir": "/w"}, "My-Own-1B"),
        ("My-Own-1B", (), {"hf_model": "me/My-Own-1B"}, "me/My-Own-1B"),
        ("me/My-Own-1B", (), {}, "me/My-Own-1B"),
    ],
)
def test_an_unknown_model_is_served_where_its_weights_are_known(
    name: str, there: tuple[str, ...], wishes: dict[str, str], model: str
) -> None:
    found = launched(name, there=there, wishes=wishes)
    assert (found.deployment.models[0].model, found.deployment.models[0].name) == (model, "My-Own-1B")
    assert "the catalog has no" in found.warnings[0]
    assert found.entry
    assert found.entry.as_config()["gpus_per_node"] == 1


def test_an_unknown_model_without_weights_is_not_found() -> None:
    with pytest.raises(NotFoundError) as error:
        launched("Meta-Llama-3.1-8B-instruct")
    assert error.value.hint == f"did you mean `{LLAMA_8B}`?"


@pytest.mark.parametrize("name", ["..", "-x", "a b", "$(touch x)", "a\nb", "caf\u00e9", "/", ""])
def test_a_hostile_name_is_refused(name: str) -> None:
    assert "is no name for a model" in refused(name, wishes={"hf_model": "o/m"})[0]


# ----------------------------------------------------------------------------------------- where the engine is


IMAGES = "paths: {vllm_image_path: /i/vllm.sif}\n"


@pytest.mark.parametrize(
    ("venv", "environment", "flags", "place"),
    [
        ("", "", {}, {}),
        (", venv: /v", "", {}, {"venv": "/v"}),
        (", venv: apptainer", IMAGES, {}, {"image": "/i/vllm.sif"}),
        ("", f"{IMAGES}default_args: {{venv: singularity}}\n", {}, {"image": "/i/vllm.sif"}),
        (", venv: apptainer", IMAGES, {"venv": "/mine"}, {"venv": "/mine"}),
        (", venv: /v", IMAGES, {"venv": "apptainer"}, {"image": "/i/vllm.sif"}),
        (", venv: /v", "", {"venv": "apptainer", "image": "/mine.sif"}, {"image": "/mine.sif"}),
        (", venv: /v", "", {"image": "/mine.sif"}, {"image": "/mine.sif"}),
        (", venv: /v", "", {"conda_env": "/c.tgz"}, {"conda_env": "/c.tgz"}),
        (
            ", venv: podman",
            f"{IMAGES}containerization: {{module_name: podman, module_load_cmd: module load podman x}}\n",
            {},
            {"image": "/i/vllm.sif", "modules": ("podman", "x")},
        ),
    ],
)
def test_where_the_engine_is(
    tmp_path: Path, venv: str, environment: str, flags: dict[str, Any], place: dict[str, Any]
) -> None:
    deployment = launched(
        "own", catalog=own(tmp_path, f", hf_model: o/m{venv}", environment), **flags
    ).deployment
    keys = ("venv", "image", "conda_env", "modules")
    assert {key: value for key in keys if (value := getattr(deployment, key))} == place


def test_the_image_of_vec_infs_site_is_used_where_it_is() -> None:
    image = "/model-weights/vec-inf-shared/vector-inference-vllm_latest.sif"
    assert launched(LLAMA_8B, there=(image,)).deployment.image == image
    assert launched(LLAMA_8B).deployment.image is None


def test_a_container_without_an_image_is_a_problem(tmp_path: Path) -> None:
    (problem,) = refused("own", catalog=own(tmp_path, ", hf_model: o/m, venv: apptainer"))
    assert "runs the engine from an image, and none is known for vllm" in problem


def test_binds_of_the_command_line_are_added(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", hf_model: o/m, venv: apptainer, bind: '/a:/b,/c'", IMAGES)
    assert launched("own", catalog=catalog).deployment.bind == ("/a:/b", "/c")
    found = launched("own", catalog=catalog, bind=("/d",))
    assert found.deployment.bind == ("/a:/b", "/c", "/d")
    assert found.origins["bind"].endswith("models.yaml:1, --bind")


# ----------------------------------------------------------------------------------------------- environment.yaml


def test_variables_of_vec_inf_stand_for_what_nothing_else_says(tmp_path: Path) -> None:
    environ = {"VEC_INF_ACCOUNT": "theirs", "VEC_INF_WORK_DIR": "/theirs"}
    found = launched(LLAMA_8B, environ=environ)
    assert (found.deployment.account, found.deployment.work_dir) == ("theirs", "/theirs")
    assert found.origins["account"] == "VEC_INF_ACCOUNT"
    catalog = own(tmp_path, ", hf_model: o/m, account: entry")
    assert launched("own", catalog=catalog, environ=environ).deployment.account == "entry"


def test_what_a_site_requires_is_required(tmp_path: Path) -> None:
    catalog = own(tmp_path, ", hf_model: o/m", "required_args: {account: THE_ACCOUNT}\n")
    (problem,) = refused("own", catalog=catalog)
    assert problem == (
        f"{tmp_path / 'environment.yaml'}:1: `account` is required (give --account, or set THE_ACCOUNT)"
    )
    assert launched("own", catalog=catalog, environ={"THE_ACCOUNT": "x"}).deployment.account == "x"


def test_a_broken_file_of_a_user_stops_every_launch(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("models: [\n")
    catalog = load_catalog({"AEGIS_MODEL_CONFIG": str(tmp_path / "m.yaml")}, shared=Path("/nowhere"))
    assert "not valid YAML" in refused(LLAMA_8B, catalog=catalog)[0]


# ---------------------------------------------------------------------------------------- vec-inf's own launches


@pytest.mark.parametrize(
    ("recording", "wishes", "flags"),
    [
        ("01_launch_venv", {}, {}),
        (
            "02_launch_container",
            {"vllm_args": "--max-model-len=8192,--enable-prefix-caching"},
            {"env": {"HF_HOME": "/x", "TOK": "abc"}},
        ),
        ("03_launch_multinode", {"vllm_args": "-pp=2,-tp=4"}, {}),
        ("04_launch_sglang", {"sglang_args": "--context-length=8192,--tp=1"}, {}),
    ],
)
def test_a_launch_comes_to_what_vec_inf_made_of_it(
    recording: str, wishes: dict[str, str], flags: dict[str, Any]
) -> None:
    theirs = json.loads((VEC_INF / "run" / f"{recording}.json").read_text())
    found = launched(
        theirs["model_name"],
        catalog=load_catalog({}, VEC_INF / "models.yaml"),
        environ={"VEC_INF_ACCOUNT": "research", "VEC_INF_WORK_DIR": "/home/alice/work"},
        there=(f"/model-weights/{theirs['model_name']}",),
        wishes=wishes,
        platform="killarney",
        **flags,
    )
    deployment, (model,), entry = found.deployment, found.deployment.models, found.entry
    assert entry
    assert {key: str(value) for key, value in entry.engine_args.items()} == {
        key: str(value) for key, value in theirs["engine_args"].items()
    }
    assert (entry.model_family, entry.model_type) == (theirs["model_family"], theirs["model_type"])
    assert str(deployment.gpus_per_node) == theirs["gpus_per_node"]
    assert str(deployment.nodes) == theirs["num_nodes"]
    assert deployment.walltime == theirs["time"]
    assert (deployment.account, deployment.work_dir) == (theirs["account"], theirs["work_dir"])
    assert found.platform.gpu_type == theirs["resource_type"]
    assert model.env == theirs["env"]
    assert model.model_source == f"{theirs['model_weights_parent_dir']}/{theirs['model_name']}"
