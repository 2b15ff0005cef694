from __future__ import annotations

from typing import Any

import pytest

from aegis.errors import ConfigError
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.staging.want import Site, Want, expand, is_tarball, wanted

SITE = Site(local_path="/local/", work_dir="/work dir", uid=7, home="/home/me")
CACHE = "/flare/hub/models--org--name"


def want(
    models: list[ModelEntry], weights: list[str | None], hosts: list[list[str]], **keys: Any
) -> list[Want]:
    return wanted(Deployment(models=tuple(models), hf_home="/tmp/hf", **keys), weights, hosts, SITE, "abc")


def test_a_snapshot_goes_where_the_hub_s_name_finds_it() -> None:
    [found] = want([ModelEntry(model="org/name")], [f"{CACHE}/snapshots/r1"], [["n1", "n2"]])
    assert found.destination == "/tmp/hf/hub/models--org--name"
    assert found.loaded == "/tmp/hf/hub/models--org--name/snapshots/r1"
    assert found.hosts == ("n1", "n2")


def test_directories_of_one_name_do_not_meet() -> None:
    models = [ModelEntry(model="a"), ModelEntry(model="b")]
    one, two = want(models, ["/x/8B", "/y/8B"], [["n1"], ["n1"]])
    assert one.destination != two.destination
    assert one.destination.startswith("/tmp/hf/aegis/8B-")
    assert one.loaded == one.destination


def test_what_two_models_load_is_wanted_once_for_the_nodes_of_both() -> None:
    models = [ModelEntry(model="a"), ModelEntry(model="b"), ModelEntry(model="c")]
    found = want(models, ["/x", "/x/", None], [["n1"], ["n2", "n1"], ["n3"]])
    assert [each.hosts for each in found] == [("n1", "n2")]


def test_two_snapshots_of_one_entry_do_not_replace_each_other() -> None:
    models = [ModelEntry(model="a"), ModelEntry(model="b")]
    one, two = want(models, [f"{CACHE}/snapshots/r1", f"{CACHE}/snapshots/r2"], [["n1"], ["n1"]])
    assert one.destination != two.destination
    assert two.loaded == f"{two.destination}/snapshots/r2"


def test_what_lies_where_it_would_go_is_in_place() -> None:
    [found] = want([ModelEntry(model="a")], ["/tmp/hf/hub/models--o--n/snapshots/r"], [["n1"]])
    assert found.in_place
    assert found.loaded == found.source


def test_environment_and_image_go_to_all_nodes_with_engines() -> None:
    models = [ModelEntry(model="a"), ModelEntry(model="s", engine="sim")]
    environment, image = want(
        models, [None, None], [["n1", "n2"], ["n3"]], conda_env="~/env.tar.gz", image="i.sif"
    )
    assert (environment.kind, environment.source) == ("environment", "/home/me/env.tar.gz")
    assert environment.destination == "/local/aegis-env-7/abc"
    assert (image.kind, image.source, image.hosts) == ("image", "/work dir/i.sif", ("n1", "n2"))
    assert image.destination.startswith("/local/aegis-image-7/")
    assert image.destination.endswith("-i.sif")


def test_what_is_no_file_is_not_staged() -> None:
    assert want([ModelEntry(model="a")], [None], [["n1"]], conda_env="/envs/vllm", image="docker://x") == []
    assert want([ModelEntry(model="s", engine="sim")], [None], [["n1"]], conda_env="/e.tar") == []


@pytest.mark.parametrize("name", ["e.tar", "e.tar.gz", "e.tgz", "e.tar.zst", "e.tar.bz2", "e.txz"])
def test_tarballs_are_known_by_their_names(name: str) -> None:
    assert is_tarball(f"/x/{name}")
    assert not is_tarball(f"/{name}/env")


def test_variables_of_a_profile_are_replaced_or_named() -> None:
    assert expand("/mnt/bb/$USER/${X}", {"USER": "me", "X": "y"}) == "/mnt/bb/me/y"
    with pytest.raises(ConfigError, match="SLURM_TMPDIR is not set"):
        expand("$SLURM_TMPDIR", {})
