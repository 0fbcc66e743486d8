"""Taking over what is new in an opened folder: headers in batches, bodies one by one, each stored at once.

The bytes of a mail are stored before anybody tries to understand them, and the cursor moves only over what is
stored, or knowingly left where it is. One mail that the server does not hand out stops nothing: after three
polls it is in quarantine.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from django.db.models import QuerySet
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.inbound_mail import Fields, read_fields
from gobii_email.domain.mailbox_cursor import Cursor, read_cursor, windows
from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.domain.senders import message_id_of, sender_of
from gobii_email.models import AgentEmailAccount, ReceivedMail
from gobii_email.ports import MailboxUnreadable, MailHead, OpenFolder
from gobii_email.services.admission import Fetch, wanted
from gobii_email.services.mailbox_lease import MailboxLease
from gobii_email.services.receive import receive
from gobii_email.services.record import release_connection
from gobii_email.services.rescan import Rescan
from gobii_email.services.share import shares

logger = logging.getLogger(__name__)

BATCH = 50
"""Headers fetched with one command."""
MOST_A_POLL, LONGEST_POLL = 200, 60.0
"""Mails and seconds after which a poll goes to the back of the line."""
WINDOW = 10_000
"""UIDs asked for at once, so that the answer stays small however many there are."""
MOST_TIMES = 3
"""Polls that a mail may be refused to before it goes to quarantine."""
MOST_UNFETCHED = 100
"""Mails for which that is counted; further ones go to quarantine at once."""


class Fetching:
    """One poll's work in the open `folder` of `account`; `run` it once. Every call may raise LeaseLost.

    `found` counts the mails that were new, `has_more` says that others are left. With `one_by_one` a mail
    that ends the connection is found out. Raises MailboxUnreadable once what was done is saved.
    """

    def __init__(
        self, account: AgentEmailAccount, folder: OpenFolder, lease: MailboxLease, *, one_by_one: bool = False
    ) -> None:
        self.found = 0
        self.stored = 0
        self.has_more = False
        self.is_baseline = False
        self._account = account
        self._folder = folder
        self._lease = lease
        self._batch = 1 if one_by_one else BATCH
        self._ends_at = time.monotonic() + LONGEST_POLL
        self._rescan = Rescan(account, folder)
        self._unfetched: dict[str, int] = dict(account.mailbox.unfetched)
        self._left: list[ReceivedMail] = []
        self._cursor = Cursor(0, folder.uid_validity)

    @property
    def is_complete(self) -> bool:
        """Whether every mail that there was has been dealt with."""
        is_rescanned = self._rescan.left_after(self._cursor.uid) is None
        return is_rescanned and not (self.has_more or self._unfetched)

    @property
    def missing(self) -> int:
        """Mails that the server has not handed out so far."""
        return len(self._unfetched)

    def run(self) -> None:
        stored = read_cursor(self._account.last_seen_uid)
        is_current = stored is not None and stored.is_of(self._folder.uid_validity, self._folder.uid_next)
        if stored is not None and is_current:
            self._cursor = self._cursor.at(stored.uid)
            self._read()
        elif stored is None and self._account.mailbox.baseline_at is None:
            self._take_baseline()
        else:
            self._begin_rescan()
            self._read()

    def _take_baseline(self) -> None:
        """Nothing that is there now is the agent's business; everything from now on is."""
        self.is_baseline = True
        self._save(self._newest())

    def _begin_rescan(self) -> None:
        logger.warning("mailbox.rescanned", extra={"account_id": str(self._account.pk)})
        self._unfetched.clear()
        until = self._newest()
        self._rescan.until = until
        self._save(0)

    def _newest(self) -> int:
        """The newest UID there is, or may have been; 0 in a folder that never had any mail."""
        if self._folder.uid_next is not None:
            return self._folder.uid_next - 1
        return max(self._folder.uids(1, None), default=0) if self._folder.messages else 0

    # Windows and batches

    def _read(self) -> None:
        for first, last, since in self._windows():
            uids = self._folder.uids(first, last, since)
            self._forget_gone(first, last, uids)
            if not self._read_uids(uids):
                self.has_more = True
                return
            end = last if last is not None else max(uids, default=first - 1)
            if end != self._cursor.uid:
                self._save(end)

    def _forget_gone(self, first: int, last: int | None, uids: Sequence[int]) -> None:
        """What was not handed out, and then was deleted, is not waited for."""
        for uid in [uid for uid in map(int, self._unfetched) if uid not in uids]:
            if first <= uid and (last is None or uid <= last):
                del self._unfetched[str(uid)]

    def _windows(self) -> Iterator[tuple[int, int | None, date | None]]:
        """Ranges of UIDs to look at: the renamed ones, of which the latest are asked for, then the new."""
        first, until = self._cursor.uid + 1, self._rescan.until
        if until is not None and first <= until:
            for start, end in windows(first, until, self._width()):
                yield start, end, self._rescan.since
            first = until + 1
        if self._folder.uid_next is not None:
            for start, end in windows(first, self._folder.uid_next - 1, self._width()):
                yield start, end, None
        elif self._folder.messages:
            yield first, None, None

    def _width(self) -> int:
        """A folder with few mails answers in few words, however many UIDs it is asked for."""
        return WINDOW if self._folder.messages > WINDOW else 2**32

    def _read_uids(self, uids: Sequence[int]) -> bool:
        """Whether all of them could be gone through in this poll."""
        for start in range(0, len(uids), self._batch):
            if self._is_enough():
                return False
            if not self._take_over(uids[start : start + self._batch]):
                return False
        return True

    def _is_enough(self) -> bool:
        return self.found >= MOST_A_POLL or time.monotonic() > self._ends_at or shares.is_stopping

    def _take_over(self, uids: Sequence[int]) -> bool:
        """Goes through one batch and saves how far it came; False when the poll has to end before its end."""
        known = self._known(uids)
        release_connection()
        done = uids[0] - 1
        try:
            heads = self._heads([uid for uid in uids if uid not in known])
            for uid in uids:
                if done >= uids[0] and self._is_enough():
                    break
                if uid in heads:
                    self._take(heads[uid])
                done = uid
        finally:
            self._save(done)
        return done == uids[-1]

    def _known(self, uids: Sequence[int]) -> set[int]:
        """Those that are stored already: a poll before this one was interrupted, or waits for one of them."""
        rows = self._stored().filter(uid_validity=self._folder.uid_validity, uid__in=uids)
        return set(rows.order_by().values_list("uid", flat=True))

    def _stored(self) -> QuerySet[ReceivedMail]:
        return ReceivedMail.objects.filter(endpoint_id=self._account.pk, folder=self._account.imap_folder)

    def _save(self, uid: int) -> None:
        """Up to `uid` all is dealt with, save what the server has not handed out: that is asked for again."""
        waits_for = min(map(int, self._unfetched), default=uid + 1)
        self._cursor = self._cursor.at(min(uid, waits_for - 1))
        left, self._left = self._left, []
        left_to_rescan = self._rescan.left_after(self._cursor.uid)
        with self._lease.fenced(unfetched=self._unfetched, rescan_until=left_to_rescan):
            ReceivedMail.objects.bulk_create(left, ignore_conflicts=True)
            AgentEmailAccount.objects.filter(pk=self._account.pk).update(last_seen_uid=str(self._cursor))
        release_connection()

    # One mail

    def _heads(self, uids: Sequence[int]) -> Mapping[int, MailHead]:
        """By UID, for those that are there; where one of them spoils the answer, each by itself."""
        try:
            heads = self._folder.heads(uids)
        except MailboxUnreadable as problem:
            if problem.is_over and len(uids) > 1:
                raise
            if len(uids) == 1:
                self._note_missing(uids[0], problem)
                return {}
        else:
            for uid in set(uids) - heads.keys():
                self._note_left_out(uid)
            return heads
        return {uid: head for one in uids for uid, head in self._heads([one]).items()}

    def _take(self, head: MailHead) -> None:
        self.found += 1
        fields = read_fields(head.header)
        if self._rescan.knows(head, fields):
            return
        verdict = wanted(self._account.endpoint, fields, head.size)
        release_connection()
        mail = self._row(head, fields)
        match verdict.fetch:
            case Fetch.SKIP:
                mail.state, mail.reason = ReceivedMail.State.SKIPPED, verdict.reason
                self._left.append(mail)
            case Fetch.HEADER:
                mail.raw = head.header
                self._store(mail)
            case _:
                self._fetch_body(mail)

    def _fetch_body(self, mail: ReceivedMail) -> None:
        try:
            mail.raw = self._folder.body(mail.uid, mail.size, config().max_received_bytes)
        except MailboxUnreadable as problem:
            self._note_missing(mail.uid, problem, mail)
            return
        if mail.raw is None:
            self._note_left_out(mail.uid, mail)
            return
        self._store(mail)
        self._unfetched.pop(str(mail.uid), None)

    def _store(self, mail: ReceivedMail) -> None:
        """Commits the mail as it came, and has it read; whatever comes of that, it is there."""
        with self._lease.fenced():
            ReceivedMail.objects.bulk_create([mail], ignore_conflicts=True)
        self.stored += 1
        try:
            receive(mail.pk)
        except Exception as problem:
            # Nothing is lost: the dispatcher has it read again.
            facts = {"account_id": str(self._account.pk), "error": type(problem).__name__}
            logger.exception("mail.reading_failed", extra=facts)
        release_connection()

    def _row(self, head: MailHead, fields: Fields) -> ReceivedMail:
        return ReceivedMail(
            endpoint_id=self._account.pk,
            folder=self._account.imap_folder,
            uid_validity=self._folder.uid_validity,
            uid=head.uid,
            size=min(max(head.size, 0), 2**31 - 1),
            internal_at=head.internal_at,
            rfc_message_id=message_id_of(fields),
            from_address=sender_of(fields),
            stored_at=timezone.now(),
        )

    def _note_left_out(self, uid: int, mail: ReceivedMail | None = None) -> None:
        """Either it was deleted just now, which the next poll sees, or it is asked for again then."""
        failure = MailboxFailure("left_out", "It answers without it.")
        self._note_missing(uid, MailboxUnreadable(failure, is_over=False), mail)

    def _note_missing(self, uid: int, problem: MailboxUnreadable, mail: ReceivedMail | None = None) -> None:
        """Counts a mail that was not handed out; raises `problem` where the connection ended with it."""
        times = self._unfetched.get(str(uid), 0) + 1
        if times < MOST_TIMES and len(self._unfetched) < MOST_UNFETCHED:
            self._unfetched[str(uid)] = times
        else:
            self._unfetched.pop(str(uid), None)
            mail = mail or self._row(MailHead(uid, 0, None, b""), Fields())
            mail.state = ReceivedMail.State.QUARANTINED
            mail.reason = f"The mailbox's server does not hand it out: {problem.failure.text}"
            self._left.append(mail)
        if problem.is_over:
            raise problem
