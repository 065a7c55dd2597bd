"""The driver of a member's state machine: threads, clock, coordinator, and the questions to other members.

Events reach the state machine under one lock, from whichever thread has them, and effects come out in order. Those that
a commit waits for (acknowledge, publish, reply) are carried out at once by the thread that brought the event. The
others have a thread for each kind of work: one for promises and documents, which are small synced files; one for the
coordinator; one for the log. So a promise never waits for a copy of a log, and a commit never for the coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ...engine.env import Env, Task
from ...engine.env.pool import Pool
from ...engine.env.system import told
from ...engine.errors import (
    AccessDenied,
    DeviceFailed,
    DiskFull,
    HoldfastError,
    LimitReached,
    StoreClosed,
    StoreLocked,
    StorePoisoned,
)
from .coordinator import Coordinator, Version
from .document import ClusterDocument
from .effects import (
    Accept,
    Acknowledge,
    Answer,
    Ask,
    Effect,
    End,
    Fetch,
    Follow,
    Hold,
    Keep,
    Poll,
    Promise,
    Publish,
    Read,
    Reply,
    Say,
    StartEpoch,
    StepDown,
    Swap,
    Unfollow,
    Whole,
)
from .errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from .member import StateMachine
from .state import StoredState

logger = logging.getLogger("holdfast.cluster")

LEAST_WAIT_S, MOST_WAIT_S = 0.02, 1.0
"""Between two looks at the time."""
RETRY_S = 0.2
"""After the coordinator could not be reached."""
STORE_S = 1.0
"""Between two attempts to store a small file that could not be stored."""


def passes(error: BaseException) -> HoldfastError | None:
    """What an error says, as one of the kit's, if its cause may pass while the member runs: a full disk, for instance.
    None if it is of another kind."""
    known = error if isinstance(error, HoldfastError) else told(error, "a file of this member")
    return known if isinstance(known, DiskFull | LimitReached | DeviceFailed | AccessDenied | StoreLocked) else None


class Work(Protocol):
    """What the driver has done by others: with the store's log, and with the other members. May raise."""

    def publish(self, txid: int) -> None: ...
    def acknowledge(self, epoch: int, txid: int, beat: int) -> None: ...
    def follow(self, name: str, address: str, epoch: int) -> None: ...
    def unfollow(self) -> None: ...
    def fetch(self, address: str, end: End) -> End: ...
    def start_epoch(self, epoch: int, branch: str) -> End: ...
    def accept(self, watermark: int) -> None: ...
    def hold(self) -> End | None: ...
    def refuse(self) -> None: ...
    def step_down(self) -> tuple[End, int]: ...
    def ask(self, address: str, epoch: int) -> tuple[Answer | None, int]: ...
    def poll(self, address: str) -> int | None: ...


class Driver:
    """See the module's text. `machine` is only used under `lock`, or for reading single attributes.

    Attributes:
        hindered: what keeps this member from working until it has passed, in words, by what is hindered.
    """

    def __init__(self, machine: StateMachine, state: StoredState, coordinator: Coordinator, work: Work,
                 env: Env, *, on_failure: Callable[[BaseException], None]) -> None:
        """
        Args:
            machine, state, coordinator, work, env: what it drives, and by what.
            on_failure: told of an error that leaves the member unable to go on: damage, for instance. On the thread
                that failed.
        """
        self.hindered: dict[str, str] = {}
        self.machine = machine
        self.lock = env.scheduler.lock()
        self.changed = env.scheduler.condition(self.lock)
        self._state = state
        self._coordinator = coordinator
        self._work = work
        self._env = env
        self._on_failure = on_failure
        self._now = env.clock.monotonic
        self._to_keep: ClusterDocument | None = None  # the last document that is to be stored
        self._closing = env.scheduler.event()
        self._woken = env.scheduler.event()
        self._due = float("inf")  # what the thread for time waits for
        self._files = Pool("holdfast-member", 1, env.scheduler)
        self._swaps = Pool("holdfast-coordinator", 1, env.scheduler)
        self._log = Pool("holdfast-member-log", 1, env.scheduler)
        self._asking = Pool("holdfast-ask", 8, env.scheduler)
        self._threads: list[Task] = []

    def start(self) -> None:
        """Read the document, and go on from there."""
        spawn = self._env.scheduler.spawn
        self._threads = [spawn("holdfast-time", self._run_time), spawn("holdfast-watch", self._run_watch)]

    # --- events in, effects out -----------------------------------------------------------------------------------

    def tell(self, event: Callable[[StateMachine], object]) -> Any:
        """Bring an event, and have its effects carried out. Returns what `event` returns. From any thread."""
        at_once: list[Effect] = []
        with self.lock:
            outcome = event(self.machine)
            for effect in self.machine.take():
                if isinstance(effect, Publish | Acknowledge | Reply | Say):
                    at_once.append(effect)
                else:
                    self._submit(effect)
                    if isinstance(effect, StepDown):
                        at_once.append(effect)
            self.changed.notify_all()
            due = self.machine.deadline()
            sooner = due is not None and due < self._due
        if sooner:  # most events put the deadline off, and a change of threads costs more than all else here
            self._woken.set()
        for effect in at_once:
            self._do_at_once(effect)
        return outcome

    def _do_at_once(self, effect: Effect) -> None:
        match effect:
            case Publish(txid):
                self._attempt(lambda: self._work.publish(txid))
            case Acknowledge(epoch, txid, beat):
                self._work.acknowledge(epoch, txid, beat)
            case Reply(request, answer, promised):
                assert isinstance(request, Future)
                if request.set_running_or_notify_cancel():
                    request.set_result((answer, promised))
            case StepDown():
                self._work.refuse()
            case Say(level, text):
                logger.log(level, "%s: %s", self.machine.name, text)

    def _submit(self, effect: Effect) -> None:
        """Hand an effect to the thread for its kind of work. The lock is held, so the order is kept."""
        pool = (self._swaps if isinstance(effect, Swap | Read) else
                self._asking if isinstance(effect, Ask | Poll) else
                self._log if isinstance(effect, Fetch | StartEpoch | Accept | Hold | StepDown) else self._files)
        if isinstance(effect, Keep):
            self._to_keep = effect.document
        try:
            pool.submit(lambda: self._attempt(lambda: self._do(effect)))
        except StoreClosed:  # this member is closing
            logger.debug("%s is not done: %s is closing", effect, self.machine.name)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StoreClosed:
            if not self._closing.is_set():
                logger.info("%s: the store was closed meanwhile", self.machine.name)
        except StorePoisoned as error:  # who poisoned it has it opened anew
            logger.info("%s: %s", self.machine.name, error)
        except BaseException as error:
            if not self._closing.is_set():
                self._on_failure(error)

    def _do(self, effect: Effect) -> None:
        work, state, tell, now = self._work, self._state, self.tell, self._now
        match effect:
            case Keep(document):
                self._store(lambda: state.keep_document(document), lambda: document is self._to_keep)
            case Promise(epoch, to):
                self._store(lambda: state.keep_promise(epoch, to))
                tell(lambda m: m.promise_kept(epoch, now()))
            case Whole(whole):
                self._store(lambda: state.keep_whole(whole))
            case Follow(name, address, epoch):
                work.follow(name, address, epoch)
            case Unfollow():
                work.unfollow()
            case Swap(version, document):
                self._swap(version, document)
            case Read():
                self._read()
            case Ask(name, address, epoch):
                self._ask(name, address, epoch)
            case Poll(name, address, _):
                lost = work.poll(address)
                tell(lambda m: m.polled(name, lost, now()))
            case Fetch(name, address, end):
                self._fetch(name, address, end)
            case StartEpoch(epoch, branch):
                started = work.start_epoch(epoch, branch)
                tell(lambda m: m.epoch_started(started, now()))
            case Accept():
                work.accept(self.machine.watermark)
            case Hold():
                held = work.hold()
                if held is not None:
                    tell(lambda m: m.drained(held, now()))
            case StepDown():
                end, published = work.step_down()
                tell(lambda m: m.stepped_down(end, published, now()))

    def _store(self, keep: Callable[[], None], wanted: Callable[[], bool] = lambda: True) -> None:
        """Store a small file. If there is no room, wait until there is: what rests on it must not happen before. Give
        up if it is not `wanted` any more."""
        while True:
            try:
                keep()
            except Exception as error:
                if (cause := passes(error)) is None:
                    raise
                self.hinder("files", cause)
            else:
                self.unhinder("files")
                return
            if self._closing.wait(STORE_S):
                raise StoreClosed(f"{self.machine.name} is closing")
            if not wanted():
                return

    def hinder(self, what: str, error: BaseException) -> None:
        """Something keeps this member from working, and it goes on by itself when that has passed. It is logged when it
        begins or changes. From any thread."""
        cause = passes(error) or error
        text = (f"{cause.message}; it goes on by itself when that has passed ({cause.hint})"
                if isinstance(cause, HoldfastError) else f"{cause!r}; it goes on by itself when that has passed")
        if self.hindered.get(what) != text:
            self.hindered = {**self.hindered, what: text}
            logger.error("%s is hindered: %s", self.machine.name, text)

    def unhinder(self, what: str) -> None:
        """That has passed. From any thread."""
        if what in self.hindered:
            self.hindered = {key: text for key, text in self.hindered.items() if key != what}
            logger.warning("%s goes on: what hindered it has passed", self.machine.name)

    def _ask(self, name: str, address: str, epoch: int) -> None:
        try:
            answer, promised = self._work.ask(address, epoch)
        except (HoldfastError, OSError) as error:
            logger.info("%s: %s does not promise: %s", self.machine.name, name, error)
            return
        if answer is None:
            self.tell(lambda m: m.refused(name, promised, self._now()))
        else:
            self.tell(lambda m: m.answered(name, answer, self._now()))

    def _fetch(self, name: str, address: str, wanted: End) -> None:
        try:
            end = self._work.fetch(address, wanted)
        except (HoldfastError, OSError) as error:
            logger.warning("%s: the log of %s could not be fetched: %s", self.machine.name, name, error)
            self.tell(lambda m: m.fetch_failed(name, self._now()))
        else:
            self.tell(lambda m: m.fetched(end, self._now()))

    # --- the coordinator ------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """How long one call to the coordinator may take, seconds: no call outlasts a lease."""
        document = self.machine.document
        return 1.0 if document is None else document.ttl / 3

    def _swap(self, version: object, document: ClusterDocument) -> None:
        assert isinstance(version, Version)  # it came from `read`
        began = self._now()
        try:
            now_at = self._coordinator.swap(version, document.encode(), self._patience())
        except SwapConflict:
            self.tell(lambda m: m.conflict(self._now()))
        except SwapUnknown as error:
            logger.warning("%s: whether the coordinator has swapped is not known: %s", self.machine.name, error)
            self.tell(lambda m: m.unknown(self._now()))
        except CoordinatorUnavailable as error:
            logger.info("%s: the coordinator does not answer: %s", self.machine.name, error)
            self._closing.wait(max(0.0, RETRY_S - (self._now() - began)))
            self.tell(lambda m: m.unavailable(self._now()))
        else:
            self.tell(lambda m: m.swapped(now_at, self._now()))

    def _read(self) -> None:
        try:
            data, version = self._coordinator.read(self._patience())
        except CoordinatorUnavailable as error:
            logger.info("%s: the coordinator does not answer: %s", self.machine.name, error)
            if not self._closing.wait(RETRY_S):
                self.tell(lambda m: m.unreachable(self._now()))
            return
        document = None if data is None else ClusterDocument.decode(data)
        self.tell(lambda m: m.read(document, version, self._now()))

    def _run_watch(self) -> None:
        """Have the document read whenever it changes. All reads and swaps are one thread's, so none overtakes another.
        """
        self._attempt(self._watch)

    def _watch(self) -> None:
        seen: Version | None = None
        while not self._closing.is_set():
            try:
                if seen is None:
                    _, seen = self._coordinator.read(self._patience())
                else:
                    news = self._coordinator.wait(seen, self._patience())
                    seen = seen if news is None else news[1]
            except CoordinatorUnavailable:
                seen = None
                self._closing.wait(RETRY_S)
                continue
            if seen != self.machine.version:  # again and again, because a read may fail
                self._submit(Read())

    # --- time -----------------------------------------------------------------------------------------------------

    def _run_time(self) -> None:
        self._attempt(self._watch_time)

    def _watch_time(self) -> None:
        while not self._closing.is_set():
            with self.lock:
                due = self.machine.deadline()
                self._due = float("inf") if due is None else due
            left = MOST_WAIT_S if due is None else min(MOST_WAIT_S, max(LEAST_WAIT_S, due - self._now()))
            self._woken.wait(left)
            self._woken.clear()
            if due is not None and due <= self._now():
                self.tell(lambda m: m.tick(self._now()))
                self._closing.wait(LEAST_WAIT_S)

    def wait(self, reached: Callable[[StateMachine], bool], timeout: float | None) -> bool:
        """Wait until `reached(machine)`, which is called under the lock after each event."""
        with self.lock:
            return self.changed.wait_for(lambda: self._closing.is_set() or reached(self.machine), timeout)

    def settle(self) -> None:
        """Wait until the small files that were to be stored before this call are."""
        self._files.submit(lambda: None).result()

    def notify(self) -> None:
        """Something that `wait` may look at has changed beside the state machine."""
        with self.lock:
            self.changed.notify_all()

    def close(self) -> None:
        """Stop all threads, and wait for their end. The coordinator is closed, too."""
        self._closing.set()
        self._woken.set()
        with self.lock:
            self.changed.notify_all()
        for pool in (self._swaps, self._asking, self._log, self._files):
            pool.close()
        self._coordinator.close()  # a wait for its news ends
        for thread in self._threads:
            thread.join()
