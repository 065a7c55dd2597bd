"""Names of modules that users may have typed before the layout in rooms: they work, and warn with the new name."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module

import pytest

from holdfast.engine.renamed import MODULES

PUBLIC = {
    "directory": "Layout", "graph": "GraphEngine", "graph.store": "GraphStore", "helpers": "FileImage",
    "history": "Record",
    "memory": "MemoryEngine", "pairs": "Overlay", "plugins": "Plugin", "records": "RecordsEngine",
    "rocksdb": "RocksEngine", "sealed": "Sealer", "seams": "Seams", "settings": "Settings", "source.base": "Source",
    "source.client": "HttpSource", "source.service": "BackupService", "sqlite": "SqliteEngine",
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
    assert getattr(module, PUBLIC[old]) in [getattr(place, PUBLIC[old], None) for place in new]
    assert not hasattr(module, "NoSuchThing")


def test_no_old_name_is_left_out_of_this_test() -> None:
    assert PUBLIC.keys() == MODULES.keys()


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("holdfast.engine.nonsense")
