"""The README's first example, against whatever `holdfast` is installed: the checkout, or the built wheel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from holdfast import backup
from holdfast.engine import GraphStore


def test_the_library_as_a_newcomer_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with GraphStore.open("social.db") as graph:
        with graph.transaction() as tx:
            ada = tx.add_node("Person", name="Ada")
            bob = tx.add_node("Person", name="Bob")
            tx.add_edge(ada, "KNOWS", bob, since=1843)
        with graph.snapshot() as view:
            assert view.node(ada).properties == {"name": "Ada"}
            assert list(view.neighbors(ada, "KNOWS")) == [bob]
            digest = view.digest()
        assert graph.backup_uri is not None
        first = backup.run(graph.backup_uri, "backups/social")
        with graph.transaction() as tx:
            tx.add_node("Person", name="Charles")
        second = backup.run(graph.backup_uri, "backups/social")
        assert (first.kind, second.kind) == ("full", "incremental")
    backup.restore("backups/social", "restored/social", to_txid=1)
    with GraphStore.open("restored/social", online_backup_enabled=False) as restored, restored.snapshot() as view:
        assert view.digest() == digest


def test_no_module_is_imported_by_its_folder_name() -> None:
    """In a checkout `import engine` works by accident; installed, it does not."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").exists():
        pytest.skip("not in a checkout")
    bad = re.compile(r"^\s*(?:from|import)\s+(?:engine|replay|backup|benchmarks)\b", re.MULTILINE)
    folders = ("engine", "replay", "backup", "benchmarks", "tests")
    found = [str(path) for folder in folders for path in (root / folder).rglob("*.py") if bad.search(path.read_text())]
    assert not found
