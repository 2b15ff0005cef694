"""What is staged on a node, removed again; and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.staging.listing import encode
from aegis.staging.local import adopt, stage_here
from aegis.staging.node import check
from aegis.staging.node.items import ListError, parse, short
from aegis.staging.node.places import FOREIGN, Places, places_of
from aegis.staging.node.store import Store, StoreError
from aegis.staging.scan import scan

if TYPE_CHECKING:
    from pathlib import Path


def places(source: Path, destination: Path) -> Places:
    return places_of(parse(encode([scan(str(source), str(destination))]))[0])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    (root / "weights").write_bytes(b"w")
    return root


def test_clean_leaves_a_tree_that_was_adopted(source: Path) -> None:
    adopt(scan(str(source), str(source)))
    assert FOREIGN in check.clean(places(source, source))[1]
    assert (source / "weights").read_bytes() == b"w"
    assert check.verify(places(source, source)) == (1, "")


def test_a_tree_that_was_adopted_is_not_replaced(source: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "weights").write_bytes(b"mine")
    adopt(scan(str(own), str(own)))
    with pytest.raises(StoreError, match=FOREIGN):
        Store(places(source, own).item).prepare(lambda: None)
    assert (own / "weights").read_bytes() == b"mine"
    assert not (tmp_path / "own.aegis-part").exists()


def test_clean_removes_what_was_staged_and_what_a_killed_run_left(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    stage_here(scan(str(source), str(there)))
    (tmp_path / "there.aegis-part").mkdir()
    (tmp_path / "there.aegis-old").mkdir()
    assert check.clean(places(source, there)) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert check.clean(places(source, tmp_path / "nowhere" / "there")) == (0, "")


def test_what_is_being_staged_is_not_removed(source: Path, tmp_path: Path) -> None:
    store = Store(places(source, tmp_path / "there").item)
    store.prepare(lambda: None)
    assert "is being staged" in check.clean(store.places)[1]
    store.abandon()
    assert check.clean(store.places) == (0, "")


def test_a_lock_that_is_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there.aegis-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Store(places(source, tmp_path / "there").item).prepare(lambda: None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_of_less_than_nothing_is_no_file(source: Path, tmp_path: Path) -> None:
    listed = encode([scan(str(source), str(tmp_path / "there"))])
    size = (source / "weights").stat().st_size
    with pytest.raises(ListError, match="has -1 bytes"):
        parse(listed.replace(b"weights\0%d\0" % size, b"weights\0-1\0", 1))


@pytest.mark.parametrize(
    ("name", "shortened"),
    [
        ("x1.cm.site.edu", "x1"),
        ("Node7", "node7"),
        ("10.0.0.2", "10.0.0.2"),
        ("fe80::1", "fe80::1"),
        ("n-1", "n-1"),
    ],
)
def test_a_host_is_known_without_its_domain_and_an_address_as_it_is(name: str, shortened: str) -> None:
    assert short(name) == shortened
