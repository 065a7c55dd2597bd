"""`holdfast backup URI s3://bucket/prefix`, and restore, verify and info of it: as with a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import digest, digest_at, write
from cli_rig import holdfast, told
from s3_rig import BUCKET, moto, use

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.store.store import Store


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "repo").as_uri()
        return
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    with moto(tmp_path) as port:
        use(monkeypatch, port)
        yield f"s3://{BUCKET}/social"


def test_a_url_is_backed_up_into_as_a_directory_is(store: Store[Any, Any], uri: str, url: str, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run makes the repository, the second one stores what changed; both restore."""
    monkeypatch.chdir(tmp_path)
    assert told("restore", url, tmp_path / "never", code=4)["error"] == "RepositoryMissing"
    first = told("backup", uri, url)
    assert (first["base"], first["to_txid"]) == ("", 10)
    before = digest(store)
    write(store, 2, 5)
    second = told("backup", uri, url)
    assert (second["base"], second["to_txid"]) == (first["image"], 15)
    assert told("restore", url, tmp_path / "end")["txid"] == 15
    assert digest_at(tmp_path / "end", MemoryEngine) == digest(store)
    assert told("restore", url, tmp_path / "end", "--txid", "10", "--force")["txid"] == 10
    assert digest_at(tmp_path / "end", MemoryEngine) == before
    assert "is whole" in holdfast("verify", url).stdout
    assert len(told("info", url)["images"]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(":")], "a directory with the URL's name"


def test_a_key_in_the_environment_encrypts_what_is_made(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                        ) -> None:
    url = (tmp_path / "repo").as_uri()
    monkeypatch.setenv("HOLDFAST_REPOSITORY_KEY", "a key of sixteen bytes")
    holdfast("backup", uri, url)
    assert told("info", url)["encrypted"]
    monkeypatch.delenv("HOLDFAST_REPOSITORY_KEY")
    assert told("backup", uri, url, code=4)["error"] == "KeyMissing"


def test_what_a_repository_does_not_have_is_refused(uri: str, tmp_path: Path) -> None:
    url = (tmp_path / "repo").as_uri()
    for option in (["--full"], ["--keep-points", "1 day"], ["--no-verify"], ["--expect-store", "0" * 32]):
        assert option[0].replace("no-", "") in told("backup", uri, url, *option, code=2)["message"]
    assert not (tmp_path / "repo").exists()


def test_damage_of_a_repository_ends_verify_with_its_exit_code(uri: str, tmp_path: Path) -> None:
    holdfast("backup", uri, (tmp_path / "repo").as_uri())
    pack = next((tmp_path / "repo" / "packs").rglob("0000000001"))
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-1])
    assert len(told("verify", (tmp_path / "repo").as_uri(), code=5)["damaged"]) >= 1
