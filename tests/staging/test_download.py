from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import AegisError, ConfigError
from aegis.staging import download as module
from aegis.staging.download import download, missing, read_token

if TYPE_CHECKING:
    from pathlib import Path


def program(folder: Path, script: str) -> str:
    """A stand-in for `hf`."""
    file = folder / "hf"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def fetch(tmp_path: Path, hf: str, environ: dict[str, str] | None = None, **more: Any) -> list[str]:
    said: list[str] = []
    keys = {"hf_home": f"{tmp_path}/hf home", "local_dir": None, **more}
    download(
        "org/name", program=hf, environ={"PATH": "/usr/bin:/bin", **(environ or {})}, tell=said.append, **keys
    )
    return said


def test_hf_gets_the_place_and_the_token_but_not_in_its_arguments(tmp_path: Path) -> None:
    hf = program(tmp_path, f'echo "$@|$HF_HOME|$HF_TOKEN|$HF_ENDPOINT" > "{tmp_path}/seen"')
    fetch(tmp_path, hf, {"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "http://mirror"})
    expected = f"download org/name|{tmp_path}/hf home|hf_secret|http://mirror\n"
    assert (tmp_path / "seen").read_text() == expected
    fetch(tmp_path, hf, local_dir=f"{tmp_path}/to/there")
    assert (tmp_path / "seen").read_text().startswith(f"download org/name --local-dir {tmp_path}/to/there|")


def test_a_failure_has_the_last_words_of_hf(tmp_path: Path) -> None:
    hf = program(tmp_path, "printf '10%%\\r20%%\\rGated repo: ask for access\\n' >&2; exit 1")
    with pytest.raises(
        AegisError, match="org/name cannot be downloaded: Gated repo: ask for access"
    ) as failed:
        fetch(tmp_path, hf)
    assert "holds no config.json" in str(failed.value.hint)


def test_a_directory_whose_download_was_cut_off_lacks_something_until_it_was_gone_on_with(
    tmp_path: Path,
) -> None:
    there = tmp_path / "there"
    files = f'echo "{{}}" > "{there}/config.json"; echo w > "{there}/model.safetensors"'
    with pytest.raises(AegisError, match="cannot be downloaded") as failed:
        fetch(tmp_path, program(tmp_path, f"{files}; exit 1"), local_dir=str(there))
    assert "whose download was cut off" in str(failed.value.hint)
    assert missing(str(there)) == [f"the rest of {there}, whose download was cut off"]
    fetch(tmp_path, program(tmp_path, files), local_dir=str(there))
    assert missing(str(there)) == []
    assert sorted(path.name for path in there.iterdir()) == ["config.json", "model.safetensors"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AegisError, match=r"cannot be downloaded to .*/file/there: Not a directory"):
        fetch(tmp_path, program(tmp_path, "exit 0"), local_dir=str(tmp_path / "file" / "there"))


def test_without_hf_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match="cannot be run") as failed:
        fetch(tmp_path, str(tmp_path / "none"))
    assert "huggingface_hub" in str(failed.value.hint)


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    hf = program(tmp_path, "printf '10%%\\r\\033[K20%% of 4 GB\\r' >&2")
    assert fetch(tmp_path, hf) == ["downloading org/name: [K20% of 4 GB"]


def test_offline_it_is_said_what_is_missing(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    with pytest.raises(AegisError, match=r"models--org--name holds no config.json"):
        fetch(tmp_path, "/nowhere", offline)
    snapshot = tmp_path / "hf home" / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    index = {"weight_map": {f"layer{n}": f"model-{n}.safetensors" for n in range(5)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-2.safetensors").touch()
    with pytest.raises(AegisError, match=r"model-0.safetensors.* and 1 more"):
        fetch(tmp_path, "/nowhere", offline)
    for number in range(5):
        (snapshot / f"model-{number}.safetensors").touch()
    assert fetch(tmp_path, "/nowhere", offline) == []


def test_an_index_that_is_none_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 5}')
    (tmp_path / "pytorch_model.bin.index.json").write_text("[")
    assert missing(str(tmp_path)) == []


def test_a_token_comes_from_the_environment_or_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hf_file\n")
    file.chmod(0o600)
    assert read_token({"HF_TOKEN": "hf_one", "HF_TOKEN_PATH": str(file)}) == "hf_one"
    assert read_token({"HF_TOKEN_PATH": str(file)}) == "hf_file"
    assert read_token({}) is None
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="may be read by others"):
        read_token({"HF_TOKEN_PATH": str(file)})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token({"HF_TOKEN_PATH": str(tmp_path / "none")})
