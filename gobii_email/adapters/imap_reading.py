"""Reading the mails of an opened folder (RFC 9051): which there are, their headers, one body at a time.

Changes nothing in it: BODY.PEEK alone, and UIDs alone are asked for. Each answer has a budget that follows
from what was asked, so a flood ends the connection and fills no memory. What a mail means is left to others.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta

from gobii_email.adapters.dialer import DialFailed
from gobii_email.adapters.imap_dialogue import Folder, ImapDialogue
from gobii_email.adapters.imap_session import Declined
from gobii_email.adapters.wire import Broken
from gobii_email.domain.mailbox_failures import failure_of_loss, failure_of_refusal
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import Auth, ImapServer, MailboxUnreadable, MailHead

MAX_HEADER_BYTES = 64 * 1024
"""So much of a header block is asked for; the longest that people's servers write are half of it."""
SEARCH_BYTES = 1024 * 1024
BESIDE_BYTES = 4 * 1024
"""What may stand beside a header or a body in an answer."""
CHATTER_BYTES = 64 * 1024
"""What a server may tell in any answer without being asked, such as new mail and changed flags."""
SLOWEST_BYTES_PER_SECOND = 64 * 1000

_HEAD = ["UID", "RFC822.SIZE", "INTERNALDATE", f"BODY.PEEK[HEADER]<0.{MAX_HEADER_BYTES}>"]
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ImapFolder:
    """An open folder, as `ports.OpenFolder` has it."""

    def __init__(self, dialogue: ImapDialogue, folder: Folder) -> None:
        self.messages = folder.messages
        self.uid_validity = folder.uid_validity or 0
        self.uid_next = folder.uid_next
        self._dialogue = dialogue

    def uids(self, first: int, last: int | None, since: date | None = None) -> Sequence[int]:
        wanted = f"UID {first}:{'*' if last is None else last}"
        if since is not None:
            wanted += f" SINCE {since.day}-{_MONTHS[since.month - 1]}-{since.year}"
        span, session = self._dialogue.deadlines.command, self._dialogue.session
        with self._asking("SEARCH", span, SEARCH_BYTES, SEARCH_BYTES):
            session.untagged_responses.pop("SEARCH", None)
            session._simple_command("UID", "SEARCH", wanted)
            lines = session.untagged_responses.pop("SEARCH", [])
            said = b" ".join(line for line in lines if isinstance(line, bytes))
            found = {int(word) for word in said.partition(b"(")[0].split()}
        # `n:*` means the newest mail as well where its UID is below n (RFC 9051 section 9, seq-range).
        return sorted(uid for uid in found if first <= uid and (last is None or uid <= last))

    def heads(self, uids: Sequence[int]) -> Mapping[int, MailHead]:
        if not uids:
            return {}
        budget = CHATTER_BYTES + len(uids) * (MAX_HEADER_BYTES + BESIDE_BYTES)
        with self._asking("FETCH", self._time_for(budget), budget):
            found = self._dialogue.client.fetch(uids, _HEAD)
            return {uid: _head(uid, told) for uid, told in found.items() if _header_in(told) is not None}

    def body(self, uid: int, size: int, most: int) -> bytes | None:
        with self._asking("FETCH", self._time_for(min(size, most)), most + CHATTER_BYTES):
            found = self._dialogue.client.fetch([uid], ["UID", "BODY.PEEK[]"])
            said = found.get(uid, {}).get(b"BODY[]")
            return said if said is None else bytes(said)

    def _time_for(self, size: int) -> timedelta:
        return self._dialogue.deadlines.body + timedelta(seconds=size / SLOWEST_BYTES_PER_SECOND)

    @contextmanager
    def _asking(
        self, doing: str, span: timedelta, budget: int, longest_line: int = CHATTER_BYTES
    ) -> Iterator[None]:
        with told(self._dialogue.server), self._dialogue.asking(doing, span, budget, longest_line):
            yield


def _head(uid: int, told: Mapping[bytes, object]) -> MailHead:
    size, at = told.get(b"RFC822.SIZE"), told.get(b"INTERNALDATE")
    return MailHead(
        uid,
        size if isinstance(size, int) else 0,
        at if isinstance(at, datetime) and at.tzinfo is not None else None,
        _header_in(told) or b"",
    )


def _header_in(told: Mapping[bytes, object]) -> bytes | None:
    """The header block, by whatever case and offset the server repeats in its name."""
    names = (name for name in told if name.upper().startswith(b"BODY[HEADER]"))
    said = told.get(next(names, b""))
    return said if isinstance(said, bytes) else None


@contextmanager
def told(server: ImapServer) -> Iterator[None]:
    """What goes wrong inside comes out as MailboxUnreadable."""
    try:
        yield
    except Declined as declined:
        failure = failure_of_refusal(server.host, declined.refusal, by_token=server.auth is Auth.OAUTH2)
        raise MailboxUnreadable(failure, is_over=declined.refusal.status == "BYE") from None
    except Broken as ended:
        failure = failure_of_loss(ended.cause, ended.text, ended.advice)
        raise MailboxUnreadable(failure, is_over=True) from None
    except DialFailed as ended:
        raise MailboxUnreadable(failure_of_loss(ended.cause, ended.text), is_over=True) from None
    except TimeoutError:
        text = f"{server.host} did not open the mailbox in time."
        raise MailboxUnreadable(failure_of_loss(Cause.TIMEOUT, text), is_over=True) from None
