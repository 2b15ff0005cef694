from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError
from aegis.staging.plan import make_plan
from aegis.staging.want import Want

if TYPE_CHECKING:
    from pathlib import Path


def want(source: Path, *hosts: str) -> Want:
    return Want(
        kind="weights",
        name=source.name,
        source=str(source),
        destination=f"/d/{source.name}",
        loaded="/",
        hosts=hosts,
    )


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    for name, size in (("large", 100), ("small", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(size))
    return [tmp_path / "large", tmp_path / "small"]


def test_the_smallest_comes_first(sources: list[Path]) -> None:
    plan = make_plan([want(sources[0], "a"), want(sources[1], "a", "b")])
    assert [item.size for item in plan.items] == [1, 100]
    assert [each.name for each in plan.wants] == ["small", "large"]
    assert (plan.size, plan.files, plan.delivered) == (101, 2, 102)


def test_nodes_that_need_the_same_are_told_together(sources: list[Path]) -> None:
    plan = make_plan([want(sources[0], "a", "c"), want(sources[1], "a", "b", "c")])
    assert [(need.hosts, need.size, need.files) for need in plan.needs()] == [
        (("a", "c"), 101, 2),
        (("b",), 1, 1),
    ]


def test_only_some_nodes(sources: list[Path]) -> None:
    plan = make_plan([want(sources[0], "a"), want(sources[1], "a", "b")], only=["b"])
    assert [(item.size, item.hosts) for item in plan.items] == [(1, ("b",))]


def test_something_may_be_read_elsewhere(sources: list[Path]) -> None:
    plan = make_plan([want(sources[0], "a")], {str(sources[0]): str(sources[1])})
    assert [(item.source, item.destination) for item in plan.items] == [(str(sources[1]), "/d/large")]


def test_problems_of_all_sources_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError) as refused:
        make_plan([want(tmp_path / "bad", "a"), want(tmp_path / "missing", "a")])
    assert "leads nowhere" in refused.value.message
    assert f"{tmp_path}/missing: it is not there" in refused.value.message
