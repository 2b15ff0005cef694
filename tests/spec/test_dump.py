"""What is printed is a deployment file that means the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.document import parse_document
from aegis.spec.dump import deployment_schema, dump_choices, dump_deployment, dump_platform
from aegis.spec.platforms import BUILT_IN, Site, is_built_in, load_platform
from aegis.spec.resolve import resolve

DEPLOYMENTS = Path(__file__).parents[1] / "fixtures" / "deployments"
SITE = Site((BUILT_IN,), "laptop", lambda _: False)

HOSTILE = [
    *("no", "yes", "null", "~", "true", "1e5", "0123", "0o17", "0x1F", "1_000", "01:00:00", "12:00:00"),
    *(".inf", "-", "- a", "=", "<<", "#", "a # b", "a: b", "a:", "$(touch x)", "`x`", ";", "'", '"', "''"),
    *(
        " lead",
        "trail ",
        "a\nb",
        "\n",
        "\t",
        "\r\n",
        "a\u2028b",
        "\x85",
        "\ufeff",
        "\x1b[31m",
        "é",
        "🎉",
        "日本",
    ),
    *("|", ">", "&a", "*a", "!a", "%a", "@a", "{a: b}", "[a]", "{", "]", ",", "? a", "---", "...", "x" * 200),
    *("\\", "\\n", "2024-01-01", "AEGIS_DEPLOYMENT", "EOF"),
]
text = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
count = st.integers(1, 1000)
entries = st.builds(
    ModelEntry,
    model=text.filter(lambda value: not value.startswith("~")),
    served_model_name=st.none() | text,
    instances=count,
    tensor_parallel_size=count,
    download_weights=st.booleans(),
    extra_vllm_args=st.lists(text, max_size=4).map(tuple),
    env=st.dictionaries(text, text, max_size=3),
)
deployments = st.builds(
    Deployment,
    models=st.lists(entries, min_size=1, max_size=3).map(tuple),
    name=st.none() | text,
    platform=st.just("local"),
    scheduler=st.just("local"),
    walltime=st.none() | st.just("12:00:00"),
    queue=st.none() | text,
    account=st.none() | text,
    port_start=st.none() | st.integers(1, 8000),
    startup_timeout=count,
    wait=st.booleans(),
)


def read(dumped: str) -> Deployment:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.yaml"
        file.write_bytes(dumped.encode())
        return resolve(file, {}, {}, SITE).deployment


def plain(deployment: Deployment) -> Any:
    return msgspec.json.decode(msgspec.json.encode(deployment))


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("brief", [False, True])
def test_hostile_text_comes_back(hostile: str, brief: bool) -> None:
    entry = ModelEntry(
        model=hostile if not hostile.startswith("~") else "m",
        served_model_name=hostile,
        extra_vllm_args=("--a", hostile),
        env={hostile: hostile},
    )
    deployment = Deployment(models=(entry, entry), platform="local", scheduler="local", account=hostile)
    assert read(dump_deployment(deployment, brief=brief)) == deployment


@settings(max_examples=60, deadline=None)
@given(deployments, st.booleans(), st.none() | text)
@example(
    Deployment(models=(ModelEntry(model="a\nb"),), platform="local", scheduler="local"), False, "x\ny: z:1"
)
def test_any_deployment_comes_back(deployment: Deployment, brief: bool, origin: str | None) -> None:
    origins = None
    if origin is not None:
        origins = dict.fromkeys(("name", "account", "models[0].model", "models[0].env"), origin)
    assert read(dump_deployment(deployment, origins, brief=brief)) == deployment


@settings(max_examples=40, deadline=None)
@given(deployments)
def test_the_choices_alone_come_back(deployment: Deployment) -> None:
    assert read(dump_choices(deployment)) == deployment


def test_choices_are_what_is_not_the_default() -> None:
    entry = ModelEntry(model="m", instances=2, tensor_parallel_size=1)
    assert dump_choices(Deployment(models=(entry,), queue="no")) == (
        'queue: "no"\nmodels:\n- model: m\n  instances: 2\n'
    )


@settings(max_examples=40, deadline=None)
@given(deployments)
def test_any_reader_of_yaml_finds_the_same(deployment: Deployment) -> None:
    dumped = dump_deployment(deployment)
    assert yaml.safe_load(dumped) == parse_document(dumped, "f.yaml").value == plain(deployment)


def test_brief_leaves_out_what_has_no_value() -> None:
    dumped = dump_deployment(Deployment(models=(ModelEntry(model="m"),)), brief=True)
    assert "account" not in dumped
    assert "extra_vllm_args" not in dumped
    assert "skip_staging: false" in dumped


def test_origins_are_comments_on_the_line() -> None:
    deployment = Deployment(models=(ModelEntry(model="m", extra_vllm_args=("--a",)),), account="x")
    origins = {"account": "f.yaml:3", "models[0].extra_vllm_args": "--extra-vllm-args"}
    lines = dump_deployment(deployment, origins).splitlines()
    assert "account: x  # f.yaml:3" in lines
    assert "    extra_vllm_args:  # --extra-vllm-args" in lines
    assert "queue: null  # default" in lines


SCHEMA = jsonschema.Draft202012Validator(deployment_schema())


@pytest.mark.parametrize("name", ["single", "several"])
def test_the_schema_accepts_the_files_of_the_design(name: str) -> None:
    file = DEPLOYMENTS / f"{name}.yaml"
    SCHEMA.check_schema(SCHEMA.schema)
    SCHEMA.validate(parse_document(file.read_text(), str(file)).value)


@settings(max_examples=40, deadline=None)
@given(deployments)
def test_the_schema_accepts_what_is_printed(deployment: Deployment) -> None:
    SCHEMA.validate(plain(deployment))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"account": "x"},
        {"model": "m", "models": [{"model": "n"}]},
        {"models": []},
        {"models": [{"instances": 1}]},
        {"models": [{"model": "m", "port_start": 8000}]},
        {"model": "m", "bogus": 1},
        {"model": ""},
        {"model": "m", "instances": 0},
        {"model": "m", "instances": "2"},
        {"model": "m", "engine": "vlm"},
        {"model": "m", "port_start": 70000},
        {"model": "m", "extra_vllm_args": "--a"},
        {"model": "m", "env": ["A=1"]},
    ],
)
def test_the_schema_refuses(value: Any) -> None:
    assert not SCHEMA.is_valid(value)


def test_every_property_is_described() -> None:
    schema = deployment_schema()
    undescribed = [name for name, value in schema["properties"].items() if not value.get("description")]
    assert not undescribed


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", sorted(file.stem for file in BUILT_IN.glob("*.yaml")))
def test_a_profile_loads_as_it_was(name: str, masked: bool, tmp_path: Path) -> None:
    site = Site((BUILT_IN,), "laptop", lambda _: False)
    platform = load_platform(name, site)
    assert is_built_in(platform)
    if not masked:
        node = msgspec.structs.replace(platform.node, mask_variable=None)
        platform = msgspec.structs.replace(platform, node=node)
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump_platform(platform))
    assert load_platform(str(file), site) == platform
