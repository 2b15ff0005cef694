"""The models that come with Aegis: the facts of vec-inf's catalog, and shapes that fit."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import pytest

from aegis.spec.catalog.lookup import load_catalog

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
SHIPPED = load_catalog({}, shared=Path("/nowhere"))
THEIRS = load_catalog({}, VEC_INF / "models.yaml")
FACTS = (
    *("model_name", "model_family", "model_variant", "model_type", "gpus_per_node", "num_nodes"),
    *("vocab_size", "resource_type", "engine", "vllm_args", "sglang_args"),
)
SIZES = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def test_nothing_is_wrong_with_it() -> None:
    assert SHIPPED.doubts() == []
    assert len(SHIPPED.names()) > 200


@pytest.mark.parametrize("name", THEIRS.names())
def test_every_model_of_vec_inf_is_there_with_its_facts(name: str) -> None:
    ours, theirs = SHIPPED.entry(name), THEIRS.entry(name)
    assert {key: getattr(ours, key) for key in FACTS} == {key: getattr(theirs, key) for key in FACTS}


@pytest.mark.parametrize("name", SHIPPED.names())
def test_the_shape_is_that_of_the_parallel_sizes(name: str) -> None:
    entry = SHIPPED.entry(name)
    told = [entry.sglang_args] if entry.engine == "sglang" else [entry.vllm_args]
    if entry.engine is None and entry.sglang_args:
        told.append(entry.sglang_args)
    for arguments in told:
        assert prod(arguments.get(size, 1) for size in SIZES) == entry.gpus_per_node * entry.num_nodes


@pytest.mark.parametrize("name", SHIPPED.names())
def test_what_is_served_fits_what_the_model_reads(name: str) -> None:
    entry = SHIPPED.entry(name)
    if entry.served_context and entry.context_length:
        assert entry.served_context <= entry.context_length
    assert entry.hf_model
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hf_model)
    assert entry.model_name.startswith(entry.model_family)


def test_every_type_has_models() -> None:
    kinds = {SHIPPED.entry(name).model_type for name in SHIPPED.names()}
    assert kinds == set(SHIPPED.environment.model_types)


def test_nothing_in_it_belongs_to_one_site() -> None:
    told = {key for name in SHIPPED.names() for key in SHIPPED.layers[name]}
    assert not told & {"account", "qos", "partition", "time", "venv", "log_dir", "work_dir", "mem_per_node"}
