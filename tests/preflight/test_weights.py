"""The size of a checkpoint: files that a test has written, and files that nobody should have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.preflight.shape import Shape
from aegis.preflight.weights import Weights, counted, header_kinds, loaded_size, shown, weights_of

from .conftest import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

BF16 = Shape(dtype="bfloat16")


def test_the_header_of_a_file_tells_its_data_types(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"a": ("BF16", 100), "b": ("F32", 10), "c": ("BF16", 1), "empty": ("F32", 0)})
    assert header_kinds(file.read_bytes()) == {"BF16": 202, "F32": 40}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\x04\0\0",
        b"\xff" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{",
        (9).to_bytes(8, "little") + b'{"a":1}',
    ],
)
def test_what_is_no_header_tells_nothing(content: bytes) -> None:
    assert header_kinds(content) == {}


def header(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "tensor",
    [
        None,
        [],
        {"dtype": "F32"},
        {"dtype": 3, "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [4, 0]},
        {"dtype": "F32", "data_offsets": ["0", "4"]},
        {"dtype": "F32", "data_offsets": [0]},
        {"dtype": "F32", "data_offsets": [0, 10**400]},
    ],
)
def test_a_strange_tensor_is_passed_over(tensor: Any) -> None:
    good = {"dtype": "BF16", "data_offsets": [0, 4]}
    assert header_kinds(header({"__metadata__": {"format": "pt"}, "odd": tensor, "good": good})) == {
        "BF16": 4
    }


def test_one_file() -> None:
    assert weights_of({"config.json": 5, "model.safetensors": 70}) == Weights(70, "model.safetensors")


def test_numbered_files_are_summed() -> None:
    names = {f"model-{number:05d}-of-00003.safetensors": 10 for number in (1, 2, 3)}
    assert weights_of(names) == Weights(30, "model-00001-of-00003.safetensors")


def test_numbers_may_be_written_anyhow() -> None:
    names = {f"model-{number}-of-000012.safetensors": 1 for number in range(1, 13)}
    assert weights_of(names).stored == 12
    assert weights_of(names).missing == ()


def test_a_number_that_is_missing_is_told() -> None:
    names = {f"model-{number:05d}-of-00004.safetensors": 10 for number in (1, 3)}
    assert weights_of(names) == Weights(
        None,
        "model-00001-of-00004.safetensors",
        ("model-00002-of-00004.safetensors", "model-00004-of-00004.safetensors"),
    )
    assert weights_of(names, b'{"metadata": {"total_size": 40}}').stored == 40


def test_a_second_copy_is_not_counted() -> None:
    own = {f"consolidated-{number:05d}-of-00002.safetensors": 10 for number in (1, 2)}
    common = {f"model-{number:05d}-of-00003.safetensors": 10 for number in (1, 2, 3)}
    old = {f"pytorch_model-{number:05d}-of-00002.bin": 10 for number in (1, 2)}
    assert weights_of({**own, **common, **old, "consolidated.safetensors": 30}).stored == 30
    assert weights_of(own).stored == 20
    assert weights_of(old) == Weights(20)
    assert weights_of({"pytorch_model.bin": 7}) == Weights(7)


@pytest.mark.parametrize(
    ("index", "stored"),
    [
        (b'{"metadata": {"total_size": 18}, "weight_map": {}}', 18),
        (b'{"metadata": {"total_size": 999}, "weight_map": {}}', 20),
        (b'{"metadata": {"total_size": 0}}', 20),
        (b'{"metadata": {"total_size": -3}}', 20),
        (b'{"metadata": {"total_size": "18"}}', 20),
        (b'{"metadata": {"total_size": 99999999999999999999999999}}', 20),
        (b"\xff\x00", 20),
    ],
)
def test_the_index_may_say_less_than_the_files_and_never_more(index: bytes, stored: int) -> None:
    names = {f"model-{number:05d}-of-00002.safetensors": 10 for number in (1, 2)}
    assert weights_of(names, index).stored == stored


def test_a_directory_without_weights() -> None:
    assert weights_of({}) == Weights(None)
    assert weights_of({"adapter_model.safetensors": 5, "model.gguf": 9}) == Weights(None)
    assert weights_of({"model-00001-of-999999.safetensors": 1}) == Weights(None)
    assert weights_of({"model-1-of-0.safetensors": 1}) == Weights(None)


@pytest.mark.parametrize(
    ("kinds", "shape", "dtype", "share"),
    [
        ({"BF16": 10}, BF16, None, 1.0),
        ({"F32": 10}, BF16, None, 0.5),
        ({"F32": 10}, BF16, "auto", 0.5),
        ({"F32": 10}, BF16, "float32", 1.0),
        ({"BF16": 10}, BF16, "float32", 2.0),
        ({"F64": 10}, BF16, None, 0.25),
        ({"F32": 10, "BF16": 10}, BF16, None, 0.75),
        ({"F8_E4M3": 10}, BF16, None, 1.0),
        ({"F32": 10}, Shape(quantized=True), None, 1.0),
        ({}, BF16, None, 1.0),
        ({}, Shape(dtype="float32"), None, 0.5),
        ({}, Shape(), None, 0.5),
        ({}, None, None, 0.5),
    ],
)
def test_what_is_loaded(kinds: dict[str, int], shape: Shape | None, dtype: str | None, share: float) -> None:
    assert loaded_size(Weights(1000, kinds=kinds), shape, dtype) == 1000 * share
    assert loaded_size(Weights(None, kinds=kinds), shape, dtype) is None


def test_the_hub_counts_parameters() -> None:
    assert counted({"BF16": 100, "F32": 10, "STRANGE": 9}) == Weights(240, kinds={"BF16": 200, "F32": 40})
    assert counted({}) == Weights(None)
    assert counted({"BF16": 10**400, "F32": -3}) == Weights(None)


def test_a_long_list_is_cut() -> None:
    assert shown(["a", "b"]) == "a, b"
    assert shown(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


names = st.from_regex(r"(model|consolidated|x)-\d{1,6}-of-\d{1,6}\.(safetensors|bin)", fullmatch=True)


@given(st.dictionaries(names | st.text(max_size=20), st.integers(0, 2**50)), st.binary(max_size=80))
def test_any_directory_is_read(listing: dict[str, int], index: bytes) -> None:
    found = weights_of(listing, index)
    assert found.stored is None or found.stored >= 0
    assert found.first is None or found.first in listing
    assert not set(found.missing) & set(listing)
    assert (loaded_size(found, None, None) or 0) >= 0


@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda text: len(text).to_bytes(8, "little") + text)
)
def test_any_beginning_of_a_file_is_read(content: bytes) -> None:
    assert all(size > 0 for size in header_kinds(content).values())
