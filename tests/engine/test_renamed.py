"""Names that users may have typed and that are called otherwise now: they work, and warn with the new name."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from holdfast import backup
from holdfast.engine import Context, GraphStore, Position, Settings, Store, errors, testing
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import REAL
from holdfast.engine.renamed import CONTENTS, MODULES
from holdfast.engine.source.http.client import connect


def old(holder: Any, name: str) -> Any:
    """What a type-checker no longer knows."""
    return getattr(holder, name)


PUBLIC = {
    "directory": "Layout", "graph": "GraphEngine", "graph.store": "GraphStore", "helpers": "FileImage",
    "history": "Record",
    "memory": "MemoryEngine", "pairs": "Overlay", "plugins": "Plugin", "records": "RecordsEngine",
    "rocksdb": "RocksEngine", "sealed": "Sealer", "seams": "Seams", "settings": "Settings", "source.base": "Source",
    "source.client": "HttpSource", "source.service": "BackupService", "sqlite": "SqliteEngine",
    "testing.contract": "Contract", "testing.plugins": "PluginContract", "testing.profiles": "Profile",
    "testing.report": "Report", "testing.workload": "Workload",
}


@pytest.mark.parametrize("old", MODULES)
def test_an_old_name_is_the_new_one_and_says_so(old: str) -> None:
    name = f"holdfast.engine.{old}"
    sys.modules.pop(name, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DeprecationWarning)
        module = import_module(name)
    assert any(f"{name} is holdfast.engine.{MODULES[old][0]}" in str(one.message) for one in said)
    new = [import_module(f"holdfast.engine.{place}") for place in MODULES[old]]
    name = CONTENTS.get(PUBLIC[old], PUBLIC[old])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert getattr(module, PUBLIC[old]) in [getattr(place, name, None) for place in new]
    assert not hasattr(module, "NoSuchThing")


def test_no_old_name_is_left_out_of_this_test() -> None:
    assert PUBLIC.keys() == MODULES.keys()


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("holdfast.engine.nonsense")


@pytest.mark.parametrize(("module", "name"), [
    ("helpers", "KeyedDraft"), ("seams", "Seams"), ("source.base", "ConsumerState"),
    ("testing.contract", "ABOVE_SEAMS"),
])
def test_an_old_name_in_a_module_by_its_old_name(module: str, name: str) -> None:
    sys.modules.pop(f"holdfast.engine.{module}", None)
    with pytest.warns(DeprecationWarning, match=f"engine.{module} is holdfast.engine.{MODULES[module][0]}"):
        renamed = import_module(f"holdfast.engine.{module}")
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is {CONTENTS[name]} now"):
        found = old(renamed, name)
    new = [import_module(f"holdfast.engine.{place}") for place in MODULES[module]]
    assert found in [getattr(place, CONTENTS[name], None) for place in new]


def test_the_old_name_of_a_need_of_checks() -> None:
    with pytest.warns(DeprecationWarning, match="testing.ABOVE_SEAMS is ABOVE_ENV now"):
        assert old(testing, "ABOVE_SEAMS") is testing.ABOVE_ENV


def test_arguments_and_attributes_by_their_old_names(tmp_path: Path) -> None:
    days: dict[str, Any] = {"consumer_days": 3}
    with pytest.warns(DeprecationWarning, match="the argument consumer_days= is slot_days= now"):
        settings = Settings(**days)
    assert settings.slot_days == 3
    seams: dict[str, Any] = {"seams": REAL}
    with pytest.warns(DeprecationWarning, match="the argument seams= is env= now") as said:
        store = Store.open(tmp_path / "store", MemoryEngine, settings=settings, **seams)
    assert {one.filename for one in said} == {__file__}, "it names the line of whoever uses the old name"
    fold: dict[str, Any] = {"fold": None}
    with store:
        with pytest.warns(DeprecationWarning, match="the attribute seams is env now"):
            assert store.seams is store.env
        with pytest.warns(DeprecationWarning, match=r"run\(fold=…\) is run\(policy=Policy\(compact=…\)\) now"):
            report = backup.run(store, tmp_path / "target", **fold)
        with pytest.warns(DeprecationWarning, match="the attribute folded is compacted now"):
            assert report.folded is False
        with pytest.warns(DeprecationWarning, match=r"backup.consumers is slots now"):
            assert old(backup, "consumers")(store) == backup.slots(store) != []
        token: dict[str, Any] = {"token": "t"}
        with pytest.warns(DeprecationWarning, match=r"^slots\(token=…\) is slots\(connection=Connection\(token=…\)\)"):
            backup.slots(store, **token)
    with pytest.warns(DeprecationWarning, match="the attribute retired_us is promoted_us now"):
        assert backup.info(tmp_path / "target").retired_us is None
    with pytest.warns(DeprecationWarning, match="TargetRetired is TargetPromoted now"):
        assert old(errors, "TargetRetired") is errors.TargetPromoted


def test_an_engine_that_was_written_with_the_old_argument_is_opened(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"the argument adopt= of Older.open is at= now"):

        class Older(MemoryEngine):
            name = "older"

            @classmethod
            def open(cls, directory: Path, context: Context, *, read_only: bool = False,  # type: ignore[override]
                     adopt: Position | None = None) -> Any:
                return super().open(directory, context, read_only=read_only, at=adopt)

    with Store.open(tmp_path / "store", Older) as store:
        with store.transaction() as tx:
            tx.put(b"a", b"1")
        backup.run(store, tmp_path / "target")
    with Store.open(tmp_path / "target", Older) as store, store.snapshot() as view:
        assert view.get(b"a") == b"1"


def test_every_call_that_took_the_old_argument_takes_it(tmp_path: Path) -> None:
    seams: dict[str, Any] = {"seams": REAL}
    calls: list[Callable[[], Any]] = [
        lambda: GraphStore.open(tmp_path / "graph", online_backup_enabled=False, **seams).close(),
        lambda: backup.info(tmp_path / "graph", **seams),
        lambda: list(backup.transactions(tmp_path / "graph", **seams)),
        lambda: connect("127.0.0.1", 1, token="t", tls=False, **seams).close(),
    ]
    for call in calls:
        with pytest.warns(DeprecationWarning, match="the argument seams= is env= now"):
            call()


def test_a_variable_of_the_old_name_is_not_an_argument(tmp_path: Path) -> None:
    class Newer(MemoryEngine):
        name = "newer"

        @classmethod
        def open(cls, directory: Path, context: Context, *, read_only: bool = False,
                 at: Position | None = None) -> Any:
            adopt = at
            return super().open(directory, context, read_only=read_only, at=adopt)

    with Store.open(tmp_path / "store", Newer) as store:
        backup.run(store, tmp_path / "target")
    Store.open(tmp_path / "target", Newer).close()


@pytest.mark.parametrize(("old", "new"), [
    (["consumers", "list", "single://127.0.0.1:1"], "consumers is slots now"),
    (["backup", "single://127.0.0.1:1", "TARGET", "--fold=0.5"], "--fold is --compact now"),
    (["backup", "single://127.0.0.1:1", "TARGET", "--no-fold"], "--no-fold is --no-compact now"),
    (["serve", "TARGET", "--retire"], "--retire is --promote now"),
], ids=["consumers", "fold", "no-fold", "retire"])
def test_commands_and_options_by_their_old_names(old: list[str], new: str, tmp_path: Path) -> None:
    words = [str(tmp_path / "target") if word == "TARGET" else word for word in old]
    main = "from holdfast.backup.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", main, *words], capture_output=True, text=True,
                          check=False, timeout=60)
    assert new in done.stderr
    assert "No such" not in done.stderr, "the option is known by its new name"
