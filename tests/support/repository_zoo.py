"""Broken repositories: each lacks one guard of the right one, and a check of the tests must see it.

An animal is the product with a few words of one function changed. So it is wrong in exactly one way, and if the guard
goes or moves, the animal says so. The story tells what goes wrong without the guard. `caught_by` is a test that holds
for the right repository. `hunt` lets the animal out, and runs the test.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import orders
import pytest
from hypothesis import Phase, core, settings
from repository_crashes import begun, in_one_thread
from repository_rig import Rig, world

from holdfast.backup.repository.expiring import Keep
from holdfast.engine.testing import PROFILES

PRODUCT = "holdfast.backup.repository."
_SETTINGS = "_hypothesis_internal_use_settings"
"""Where Hypothesis keeps a test's settings. They are made with the test, and there is no other way to change them."""


@dataclass(frozen=True)
class Edit:
    """`new` in the place of `old`, which the source of the function `where` has once."""

    where: str
    old: str
    new: str

    def function(self) -> FunctionType:
        parts = self.where.split(".")
        depth = next(n for n, part in enumerate(parts) if part.strip("_")[0].isupper() or n == len(parts) - 1)
        found: Any = import_module(PRODUCT + ".".join(parts[:depth]))
        for part in parts[depth:]:
            found = inspect.getattr_static(found, part)
        found = getattr(found, "__func__", found)
        found = getattr(found, "__wrapped__", found)
        assert isinstance(found, FunctionType)
        return found

    def broken(self, source: str | None = None) -> str:
        """The function's source with the edit, from its `def` on."""
        text = source or re.sub(r"\A(?:@.*\n)*", "", textwrap.dedent(inspect.getsource(self.function())))
        assert text.count(self.old) == 1, f"{self.where} has {text.count(self.old)} times {self.old!r}"
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Animal:
    """See the module's text. `how`: what else the test is called with."""

    name: str
    story: str
    edits: tuple[Edit, ...]
    caught_by: str
    how: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def let_out(self) -> Iterator[None]:
        """Within the block, the product is broken."""
        with ExitStack() as stack:
            texts: dict[FunctionType, str] = {}
            for edit in self.edits:
                function = edit.function()
                texts[function] = edit.broken(texts.get(function))
            for function, text in texts.items():
                space: dict[str, Any] = {}
                exec(compile(text, function.__code__.co_filename, "exec"), function.__globals__, space)
                [made] = space.values()
                stack.callback(setattr, function, "__code__", function.__code__)
                function.__code__ = made.__code__
            yield


def hunt(animal: Animal, draw: int, place: Path) -> Exception | None:
    """What the test raises, with seeds of its own; None: it holds. Each order of a race is tried, as in `ci`, and each
    place of a cut: often only one of them shows the fault, and a sample may pass it over."""
    with animal.let_out(), pytest.MonkeyPatch.context() as patch:
        if animal.caught_by.startswith("test_repository_races."):
            patch.setattr("test_repository_races.ONE_IN", 1)
        if animal.caught_by.startswith("test_crash_repository."):
            patch.setattr("test_crash_repository.PROFILE", replace(PROFILES["default"], stride=1))
        return run_check(animal.caught_by, animal.how, draw, place)


def run_check(name: str, how: Mapping[str, Any], draw: int, place: Path) -> Exception | None:
    """Run a test of another file as pytest would. What it raises; None: it holds."""
    module, _, test = name.partition(".")
    function = getattr(import_module(module), test)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(orders, "draw", draw)
        patch.setattr(core, "global_force_seed", draw)
        patch.setattr("holdfast.backup.repository.keys._SCRYPT", {"n": 2, "r": 8, "p": 1, "dklen": 32})
        if module in ("test_repository_races", "test_crash_repository"):
            in_one_thread(patch)
        wanted: Iterable[str] = inspect.signature(function).parameters
        if hasattr(function, "hypothesis"):  # which draws them, and is to look for no shorter failure
            wanted = ()
            patch.setattr(function, _SETTINGS, settings(getattr(function, _SETTINGS), database=None,
                                                        phases=[Phase.generate]))
        given = _given(stack, patch, place)
        arguments = {name: how[name] if name in how else given[name]() for name in wanted}
        try:
            function(**arguments)
        except Exception as error:
            return error
        except pytest.fail.Exception as error:  # not an `Exception`
            return AssertionError(str(error))
    return None


def _given(stack: ExitStack, patch: pytest.MonkeyPatch, place: Path) -> dict[str, Callable[[], Any]]:
    """What fixtures give, by name."""
    made: dict[str, Any] = {}

    def once(name: str, make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: made[name] if name in made else made.setdefault(name, make())

    rig = once("rig", Rig)
    here = once("here", lambda: stack.enter_context(world(place / "store", rig().env)))
    small = once("small", lambda: import_module("test_repository").lived_a_little(rig(), here(), patch))
    return {"tmp_path": lambda: place, "monkeypatch": lambda: patch, "past": begun, "rig": rig, "here": here,
            "small": small}


ANIMALS: list[Animal] = []


def animal(name: str, story: str, *edits: tuple[str, str, str], caught_by: str, **how: Any) -> None:
    ANIMALS.append(Animal(name, story, tuple(Edit(*edit) for edit in edits), caught_by, how))


# --- the catalog --------------------------------------------------------------------------------------------------

animal("TakesTheirEntryForItsOwn",
       "A put says that the name is taken. Whoever lost believes that the earlier answer was lost, and that the entry "
       "is its own: two decisions, and one of them was never made.",
       ("catalog.Catalog._has", '["nonce"] == nonce', '["nonce"] is not None'),
       caught_by="test_repository_races.test_two_marks_of_one_name")

animal("TakesTheEndForTheEnd",
       "An entry that is missing in the middle is taken for the end of the catalog. What came after it is forgotten, "
       "and the repository shows an older state without a word.",
       ("catalog.Catalog._goes_on", "number = names.number_of(name)", "return False\n    number = 0"),
       caught_by="test_repository_hostile.test_an_entry_that_is_missing_is_not_the_end")

# --- storage ------------------------------------------------------------------------------------------------------

animal("SyncsNoDirectory",
       "A put in the local store syncs the file and not the directory. After a power cut the name is gone, although "
       "the put had returned.",
       ("storage.local.LocalObjectStore._sync_name", "files.sync_directory(path.parent)", "pass"),
       caught_by="test_crash_object_store.test_a_refusal_alone_says_what_is_durable")

animal("BelievesANameItFound",
       "What somebody else linked is read and built upon, and its directory is not synced: the other one died between "
       "link and sync, and the power cut takes the base and not what stands on it.",
       ("storage.local.LocalObjectStore._believe", "files.sync_directory(folder)", "pass"),
       caught_by="test_crash_object_store.test_what_was_read_stays")

animal("TakesALostAnswerForALoss",
       "A put whose answer was lost is done again, finds the name taken, and says that somebody else was there. The "
       "run fails although everything is stored.",
       ("storage.putting._put_or_compare", "if found != data:", "if True:"),
       caught_by="test_object_stores.test_a_put_of_ones_own_is_there_in_the_end", fates=("lost",))

animal("ListsWhatIsNotDurable",
       "What a list shows is there, and its directory is not synced. A copy that died is gone on with: it does not put "
       "again what the list shows, and a power cut takes what the first run had not synced.",
       ("storage.local.LocalObjectStore._below", "self._believe(files, self._root / folder)", "pass"),
       caught_by="test_crash_object_store.test_what_was_listed_stays")

# --- objects ------------------------------------------------------------------------------------------------------

animal("NotBoundToItsName",
       "The tag of a frame covers the content and not the object's name. Whoever can write can put one piece in the "
       "place of another, and nothing is found.",
       ("sealed._Cipher.__init__", ", len(text)) + text", ", 0)"),
       caught_by="test_repository.test_an_object_under_another_name_or_in_the_clear_is_refused")

animal("ReadsNoChecksum",
       "The checksum of a frame is stored and not compared. A flipped bit is found by the decompressor, if it is in "
       "the mood, or by nobody.",
       ("sealed._Cipher.open", "if xxh3_128_digest(b\"\".join((about, body))) == closed[-TAG_BYTES:] else None", ""),
       caught_by="test_repository.test_damage_is_named_and_nothing_wrong_is_restored", damage="flipped")

animal("OpensWithAnyKey",
       "The data keys are wrapped with something that does not depend on the operator's key. A wrong key opens the "
       "repository, and so does any other.",
       ("keys._wrapping", "key.secret", "b'the same for all'"),
       caught_by="test_repository.test_a_key_is_asked_for_and_compared")

# --- images -------------------------------------------------------------------------------------------------------

animal("ComparesByAWeakDigest",
       "Blocks are compared by a checksum of 32 bits. Two blocks that differ have the same one, by chance after some "
       "billions of them or by intent at once, and the image has the wrong one.",
       ("blocks.block_digest", "hashlib.sha256(data).digest()",
        "__import__('zlib').crc32(data).to_bytes(32, 'big')"),
       caught_by="test_repository_hostile.test_blocks_that_a_weak_digest_takes_for_one_are_two")

animal("CountsBeforeItsPacks",
       "The image's entry is put while its packs are under way. If the run dies now, the image counts and cannot be "
       "restored.",
       ("blocks.PackWriter.flush", "self._pool.submit(lambda:", "(lambda:"),
       ("blocks.PackWriter.flush", "while len(self._uploads) >= UPLOADS:", "while False:"),
       ("blocks.PackWriter.finish", "self._uploads.pop(0).result()", "self._uploads.pop(0)()"),
       ("imaging.Imaging.take", "packs.finish()\n            return self._finish(root, said, packs)",
        "image = self._finish(root, said, packs)\n            packs.finish()\n            return image"),
       caught_by="test_crash_repository.test_answers_of_the_storage_do_not_come",
       verb="the first backup", fate="gone", in_a_row=3)

animal("CountsThoughItsPacksWereDropped",
       "An expiry drops the image that this one was compared with. The new image names its packs, and counts.",
       ("imaging.Imaging._finish", "if pack in state.dropped]", "if False]"),
       caught_by="test_repository_expiry.test_a_backup_whose_base_is_dropped_meanwhile_is_whole", when="log")

animal("CountsThoughItWasGivenUp",
       "An expiry gives a run up for dead and deletes its packs. The run was only slow, and its image counts.",
       ("imaging.Imaging._finish", "if self.session in state.barred:", "if False:"),
       caught_by="test_repository_races.test_a_backup_that_is_given_up_for_dead")

# --- the archive --------------------------------------------------------------------------------------------------

animal("OverwritesAPiece",
       "A writer that finds its slot taken puts its own piece there. What the other one was told is archived is gone.",
       ("archiver.Archiver._put",
        "return put_contested(self._store, name, data, lambda: self._in_slot(slot).nonce == piece.nonce, self._env)",
        "while True:\n        try:\n            self._store.put(name, data)\n            return True\n"
        "        except ObjectExists:\n            self._store.delete(name)"),
       caught_by="test_repository_races.test_two_archivers_begin_at_once")

animal("GoesOnFenced",
       "A writer does not look whether there is a later one before a piece counts. What it acknowledges may lie behind "
       "the fence, where nobody reads.",
       ("archiver.Archiver._check_alone", "raise self._fenced(self.writer + 1)", "return"),
       caught_by="test_repository_races.test_two_archivers_whose_sources_reach_back_differently")

animal("ReadsNothingBeforeItsFence",
       "A new writer finds the slot of its fence taken by the one before, and takes the next slot with the position "
       "that it had. The piece in between is archived twice, or is a gap.",
       ("archiver.Archiver.begin", "tail = Tail(slot=tail.slot + 1, end=found.end,",
        "tail = Tail(slot=tail.slot + 1, end=tail.end,"),
       caught_by="test_repository_races.test_one_that_is_fenced_goes_on")

animal("BelievesTheList",
       "The end of the archive is where the list ends. The list is old, so a writer begins below what is archived, and "
       "a restore gives an older state than was acknowledged.",
       ("archive.Archive.tail", "found = self._noted(branch, last + 1, damaged)", "break"),
       caught_by="test_repository_hostile.test_lists_that_are_old_do_no_harm", seed=0)

animal("MergesAllButTheLast",
       "The unit says that it holds eight pieces, and holds seven. An expiry then deletes all eight.",
       ("archiver.merge_due", "whole = pieces.merged_piece(found, env)",
        "whole = pieces.merged_piece(found[:-1], env)\n"
        "    records = [one for one in records if one.txid <= whole.end.txid]"),
       caught_by="test_repository_races.test_an_expiry_and_an_archiver_that_merges")

animal("PutsAttachmentsLast",
       "A piece is put before the file that one of its records names. If the archiver dies now, the transaction is "
       "archived and cannot be replayed.",
       ("archiver.Archiver._store_batch", "for record in batch.records:", "for record in ():"),
       ("archiver.Archiver._check_alone", "try:\n", "for record in getattr(self, '_batch', ()):\n"
        "        if record.attachment is not None and self._lease is not None:\n"
        "            store_attachment(self._store, self._seal, self._source, self._lease, record.attachment,\n"
        "                             names.branch_files(self._branch))\n    try:\n"),
       ("archiver.Archiver._put", "name = names.piece", "self._batch = batch.records\n    name = names.piece"),
       caught_by="test_crash_repository.test_what_is_done_is_cut_off", verb="archiving")

# --- expiry -------------------------------------------------------------------------------------------------------

animal("CountsByTheClock",
       "The window of points ends today, by the clock of whoever runs the expiry. A clock that is ahead, or a store "
       "that was idle for a month, and all points go.",
       ("expiring._window", "now_us = max((reach.complete_until_us for reach in found), default=0)",
        "now_us = 1 << 60"),
       caught_by="test_repository_expiry.test_what_is_kept_can_still_be_restored")

animal("TrustsEveryClock",
       "An image's age is what the storage says, however far that is from what its maker said. One of the two is "
       "wrong, and an image of last night goes as one of last year.",
       ("expiring.plan", "if time_us is None or abs(time_us - image.created_us) > _HOUR_US:", "if time_us is None:"),
       caught_by="test_repository_expiry.test_clocks_that_are_an_hour_off_change_nothing")

animal("IgnoresLeases",
       "An expiry looks at what is kept, and not at who is reading. A restore of three hours ends after two, with an "
       "object that is missing.",
       ("expiring.plan", "for lease in state.leases.values():", "for lease in ():"),
       caught_by="test_repository_races.test_an_expiry_and_a_restore_of_what_it_drops", keep=Keep(points="none"))

animal("DeletesAndThenSaysSo",
       "Objects are deleted, and then the entry says that they are. If the run dies in between, or an image has been "
       "made meanwhile that uses them, the catalog names what is gone.",
       ("expiring.expire", "if _says_something(entry):",
        "for listed in gone:\n                store.delete(listed.name)\n            if _says_something(entry):"),
       caught_by="test_crash_repository.test_answers_of_the_storage_do_not_come",
       verb="an expiry", fate="gone", in_a_row=5)

animal("ListsAfterTheState",
       "Objects are listed after the catalog was read. A backup that began in between has objects that no session "
       "owns, as it seems, and loses them.",
       ("expiring.expire", "state = catalog.refresh()\n", "pass\n"),
       ("expiring.expire", "stored = [*store.list(", "state = catalog.refresh()\n        stored = [*store.list("),
       caught_by="test_repository_races.test_a_backup_of_nothing_new_and_an_expiry")

# --- restoring ----------------------------------------------------------------------------------------------------

animal("TakesTheNextImage",
       "A restore begins with the newest image whose log reaches the point, also if the image is from after it. What "
       "comes out is the image.",
       ("plan.reach_of_txid", "if reach.first <= wanted <= reach.last:", "if wanted <= reach.last:"),
       caught_by="test_repository.test_every_transaction_is_restored_from_images_and_log")

animal("AsksTheReadersClock",
       "A time is in the future if this machine's clock says so. A time up to which nothing was archived yet gives "
       "what there is, and not an error.",
       ("plan.reach_of_time", "<= time_us <= reach.complete_until_us:", "<= time_us < 1 << 60:"),
       caught_by="test_repository.test_restores_to_a_time")

animal("TrustsSizes",
       "A file that has its size is taken for the image's own. `--delta` leaves it as it is.",
       ("restoring._part", "numbers = [n for n in numbers if block_digest(there[n * size : (n + 1) * size]) != "
        "blocks[n].digest]", "numbers = []"),
       caught_by="test_crash_repository.test_a_restore_over_a_store_is_cut_off")

# --- copies -------------------------------------------------------------------------------------------------------

animal("CopiesTheCatalogFirst",
       "The entries of the catalog are copied before what they name. If the run dies, the copy says that it has "
       "images, and has none.",
       ("copying.copy", "last = _last_entry(source)\n",
        "last = _last_entry(source)\n            _entries(source, dest, last, env)\n"),
       caught_by="test_crash_repository.test_a_copy_is_cut_off", again=False)
