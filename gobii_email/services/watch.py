"""Watching mailboxes: opening them, waiting on thousands of connections, and a poll for each that has news.

Nothing is read here: news makes a mailbox due, and what becomes of it is left to poll. One thread decides,
one waits on all connections, and a few open them; which mailboxes are ours is decided in share_watches.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import Error, close_old_connections, connections

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.ports import LeasesUnavailable, NotWatched
from gobii_email.services.line_up import Line
from gobii_email.services.open_for_news import Opened, open_for_news
from gobii_email.services.poll import poll_for_news
from gobii_email.services.share_watches import Share, Watched

logger = logging.getLogger(__name__)

AHEAD = 200
"""Mailboxes that a process takes before it has opened them: the others may be faster."""
FIRST_PAUSE, LONGEST_PAUSE, LASTING_PAUSE = 5.0, 900.0, 3600.0
"""Seconds until a mailbox is opened again: doubling with failures in a row, and where nothing will change."""
STEADY_AFTER = 120.0
"""A connection that lived this long was no failure."""
TOLD_AFTER = 3
"""Failures in a row after which the mailbox says so."""
AGAIN_AFTER = 5.0
AT_ONCE = 200
"""Mailboxes with news that are asked to be polled together."""
LOOK_EVERY = 0.25


@dataclass(frozen=True, slots=True)
class _Came:
    """Something happened to `key`: news, the answer of who opened it, or why its connection ended."""

    key: str
    what: Opened | NotWatched | None = None
    opened_at_host: str | None = None


class Watcher:
    """This process at work, on `most` mailboxes at most; `run` it until `stop` is set."""

    def __init__(self, most: int) -> None:
        self._share = Share(most)
        self._mine = self._share.mine
        self._news: dict[str, float] = {}
        self._line = Line()
        self._came: queue.SimpleQueue[_Came] = queue.SimpleQueue()
        self._loop = wiring.idle_loop(
            lambda key: self._came.put(_Came(key)), lambda key, why: self._came.put(_Came(key, why))
        )

    def run(self, stop: threading.Event, on_round: Callable[[], None] = lambda: None) -> None:
        """Watches until `stop` is set; `on_round` hears of each round in which all could be asked."""
        self._loop.start()
        next_round = 0.0
        try:
            while not stop.is_set():
                if time.monotonic() >= next_round:
                    is_well = self._round()
                    next_round = time.monotonic() + self._pause(is_well=is_well)
                    if is_well:
                        on_round()
                self._open_who_is_due()
                self._ring_for_news()
                self._hear()
        finally:
            self._loop.close()
            self._share.release()
            connections.close_all()

    @property
    def connected(self) -> int:
        return len(self._loop)

    def _pause(self, *, is_well: bool) -> float:
        usual = min(config().idle_scan_interval, config().idle_lease / 3).total_seconds()
        return usual if is_well else min(usual, AGAIN_AFTER)

    def _round(self) -> bool:
        if not self._loop.is_running:
            raise RuntimeError("the loop that waits on the connections has ended")
        close_old_connections()
        try:
            self._keep_what_is_ours()
            self._follow_settings()
            self._take_more()
            self._share.tell()
        except (Error, LeasesUnavailable) as problem:
            self._fall_behind(problem)
            return False
        return True

    def _fall_behind(self, problem: Exception) -> None:
        logger.warning("idle.round_failed", extra={"error": type(problem).__name__})
        connections.close_all()

    def _keep_what_is_ours(self) -> None:
        self._forget(self._share.expired())
        lost, until = self._share.renew()
        self._forget(lost)
        self._loop.keep(self._mine, until)

    def _follow_settings(self) -> None:
        gone, changed = self._share.read()
        self._forget(gone)
        self._loop.drop(changed)
        for key in changed:
            self._line.join(key, self._mine[key].wanted.host, time.monotonic())

    def _take_more(self) -> None:
        for key in self._share.take(AHEAD - self._share.untried):
            self._line.join(key, self._mine[key].wanted.host, time.monotonic())

    def _forget(self, keys: Sequence[str]) -> None:
        self._loop.drop(keys)
        for key in keys:
            self._news.pop(key, None)
            self._line.leave(key)

    # Between rounds

    def _open_who_is_due(self) -> None:
        now = time.monotonic()
        while (key := self._line.next(now)) is not None:
            host = self._mine[key].wanted.host
            if self._mine[key].until <= now:
                self._line.done(host)
                self._line.join(key, host, now + AGAIN_AFTER)
                continue
            threading.Thread(target=self._open, args=(key, host), name="idle-open", daemon=True).start()
        if self._share.has_more and self._share.untried < AHEAD // 2:
            try:
                self._take_more()
            except LeasesUnavailable as problem:
                self._fall_behind(problem)
                self._share.has_more = False

    def _open(self, key: str, host: str) -> None:
        self._came.put(_Came(key, open_for_news(key), host))

    def _ring_for_news(self) -> None:
        now = time.monotonic()
        due = [key for key, earliest in self._news.items() if earliest <= now][:AT_ONCE]
        if not due:
            return
        try:
            poll_for_news(map(UUID, due))
        except Error as problem:
            self._fall_behind(problem)
            self._news |= dict.fromkeys(due, now + AGAIN_AFTER)
            return
        for key in due:
            del self._news[key]
            self._mine[key].rung_at = now

    def _hear(self) -> None:
        """Waits a moment for something to happen, and hears all that has."""
        try:
            self._take_in(self._came.get(timeout=LOOK_EVERY))
            while True:
                self._take_in(self._came.get_nowait())
        except queue.Empty:
            return

    def _take_in(self, came: _Came) -> None:
        if came.opened_at_host is not None:
            self._line.done(came.opened_at_host)
        watched = self._mine.get(came.key)
        match came.what:
            case None if watched is not None:
                self._note_news(came.key, watched)
            case Opened() as opened if watched is not None:
                self._wait_on(came.key, watched, opened)
            case Opened(connection=connection):
                connection.leave()
            case NotWatched() as why if watched is not None:
                self._pause_before_next(came.key, watched, why)

    def _note_news(self, key: str, watched: Watched) -> None:
        earliest = watched.rung_at + config().idle_debounce.total_seconds()
        self._news.setdefault(key, max(time.monotonic(), earliest))

    def _wait_on(self, key: str, watched: Watched, opened: Opened) -> None:
        self._loop.add(key, opened.connection, watched.until)
        watched.signature, watched.opened_at = opened.signature, time.monotonic()
        watched.is_resting, watched.problem = False, ""
        if opened.newest != watched.wanted.last_seen_uid:
            self._note_news(key, watched)

    def _pause_before_next(self, key: str, watched: Watched, why: NotWatched) -> None:
        now = time.monotonic()
        if watched.opened_at is not None and now - watched.opened_at >= STEADY_AFTER:
            watched.failures = 0
        watched.opened_at = None
        watched.failures += 1
        watched.is_resting = why.is_lasting
        if why.is_lasting or watched.failures >= TOLD_AFTER:
            watched.problem = why.text
        logger.info("idle.lost", extra={"account_id": key, "error": why.category, "text": why.text})
        self._line.join(key, watched.wanted.host, now + pause_after(watched.failures, why))


def pause_after(failures: int, why: NotWatched) -> float:
    """Seconds until the next try after `failures` (>= 1) in a row, varied so that not all come at once."""
    grown = min(FIRST_PAUSE * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
    return (LASTING_PAUSE if why.is_lasting else grown) * random.uniform(0.75, 1.25)
