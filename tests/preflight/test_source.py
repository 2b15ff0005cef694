"""Where the facts of a model are found: what the engine loads first, then the same model elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.preflight.source import chosen_snapshot

from .conftest import LLAMA_70B, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Desk

ENTRY = "models--org--M"
SAID = "the 64 attention heads of org/M cannot be split over 6 devices"


def is_read(desk: Desk, text: str = "", **keys: Any) -> bool:
    """Tell whether the configuration of the model was found."""
    keys = {"model": "org/M", "tensor_parallel_size": 6, **keys}
    found = desk.told(text, **keys)
    return any(SAID in line for line in found)


def cache(folder: Path, *complete: str, main: str = "") -> Path:
    """Make a cache entry with snapshots of which these are complete."""
    for name in ("aaa", "bbb", "ccc"):
        (folder / "snapshots" / name).mkdir(parents=True)
    for name in complete:
        write_model(folder / "snapshots" / name, LLAMA_70B)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(f"{main}\n")
    return folder


def test_nothing_is_known_of_a_model_that_is_nowhere(desk: Desk) -> None:
    assert not is_read(desk)


def test_a_directory(desk: Desk) -> None:
    write_model(desk.folder / "M", LLAMA_70B)
    assert is_read(desk, model=str(desk.folder / "M"), served_model_name="org/M")
    assert is_read(desk, model="./M", served_model_name="org/M")
    assert is_read(desk, model="~/M", served_model_name="org/M")
    assert is_read(desk, model_source="M")


def test_a_directory_of_the_name_of_the_model(desk: Desk) -> None:
    write_model(desk.folder / "org" / "M", LLAMA_70B)
    assert is_read(desk)


def test_relative_paths_start_from_the_working_directory_of_the_job(desk: Desk) -> None:
    write_model(desk.folder / "work" / "M", LLAMA_70B)
    assert not is_read(desk, model_source="M", download_weights=True)
    assert is_read(desk, model_source="M", work_dir=str(desk.folder / "work"))


def test_a_cache_entry(desk: Desk) -> None:
    cache(desk.folder / ENTRY, "bbb", main="bbb")
    assert is_read(desk, model_source=str(desk.folder / ENTRY))


def test_the_cache_of_the_servers(desk: Desk) -> None:
    cache(desk.folder / "hf" / "hub" / ENTRY, "aaa", main="ccc")
    assert is_read(desk)


def test_the_weights_of_the_site(desk: Desk, gpus: Callable[..., str]) -> None:
    cache(desk.folder / "site" / ENTRY, "aaa", main="aaa")
    assert is_read(desk, platform=gpus(weights_dir=str(desk.folder / "site")))


def test_the_weights_of_a_site_without_organisations(desk: Desk, gpus: Callable[..., str]) -> None:
    write_model(desk.folder / "site" / "M", LLAMA_70B)
    assert is_read(desk, platform=gpus(weights_dir=str(desk.folder / "site")))


@pytest.mark.parametrize(
    ("place", "environ"),
    [
        (".cache/huggingface/hub", {}),
        ("mine/hub", {"HF_HOME": "~/mine"}),
        ("other", {"HF_HOME": "~/mine", "HF_HUB_CACHE": "~/other"}),
    ],
)
def test_the_cache_of_the_user(desk: Desk, place: str, environ: dict[str, str]) -> None:
    desk.environ |= environ
    cache(desk.folder / place / ENTRY, "aaa")
    assert is_read(desk)


def test_what_is_staged_already_is_not_looked_for_in_its_source(desk: Desk) -> None:
    write_model(desk.folder / "M", LLAMA_70B)
    assert not is_read(desk, model_source=str(desk.folder / "M"), skip_staging=True)


def test_many_snapshots_do_not_hide_the_one_that_counts(desk: Desk) -> None:
    entry = cache(desk.folder / ENTRY, main="0wanted")
    for number in range(40):
        (entry / "snapshots" / f"z{number:02d}").mkdir()
    write_model(entry / "snapshots" / "0wanted", LLAMA_70B)
    assert is_read(desk, model_source=str(entry))


def test_a_name_that_a_terminal_would_obey_is_not_shown(desk: Desk) -> None:
    entry = desk.folder / ENTRY
    write_model(entry / "snapshots" / "\x1b[31m", LLAMA_70B)
    assert not is_read(desk, model_source=str(entry))
    entry = write_model(desk.folder / "m", LLAMA_70B)
    (entry / "\x1b[31m-00001-of-00002.safetensors").write_bytes(b"")
    assert is_read(desk, model_source=str(entry))
    assert "\x1b" not in str(desk.told(model="org/M", model_source=str(entry)))


names = st.text("abc", min_size=1, max_size=3)


@given(names | st.just(""), st.sets(names))
def test_the_branch_decides_where_its_snapshot_is_there(main: str, there: set[str]) -> None:
    chosen = chosen_snapshot(main, there)
    if main in there:
        assert chosen == main
    else:
        assert chosen == (max(there) if there else None)
