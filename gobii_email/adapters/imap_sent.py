"""Looks for copies of our own mail where a mailbox keeps what was sent, and files them there.

A mail is known by its header, compared for equality; SEARCH only says where to look, because servers match
parts of an id, miss ids or answer something else (iCloud, Gmail). Absent is what neither a comparison of all
headers since then nor SEARCH knows; whatever fails on the way is LookFailed. Writes nothing but by APPEND.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

from imapclient.datetime_util import datetime_to_INTERNALDATE

from gobii_email.adapters.dialer import Deadline, DialFailed, DialPolicy
from gobii_email.adapters.imap_dialogue import Folder, ImapDeadlines, ImapDialogue
from gobii_email.adapters.imap_session import Declined
from gobii_email.adapters.wire import Broken, Wire
from gobii_email.domain.evidence import ATTEMPT, MESSAGE_IDS, Copy, Looked, is_same_message
from gobii_email.domain.findings import UNREACHABLE_NAME, UNTOLD
from gobii_email.domain.imap_replies import category_of
from gobii_email.domain.inbound_mail import Fields, read_fields
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.sent_folders import sent_folders
from gobii_email.ports import Filed, ImapServer, LookedFor, LookFailed

AT_ONCE = 200
MOST_COMPARED = 1000
"""Newest mails of a folder whose headers are compared; where more came since, nothing is said."""
HEAD_BYTES = 64 * 1024
HEADERS_BYTES = 2 * 1024 * 1024
CLOCKS = timedelta(days=1)
"""How much earlier than by our clock a copy may be dated."""
VISIT = timedelta(minutes=3)
BYTES_PER_SECOND = 64_000
_WANTED = f"BODY.PEEK[HEADER.FIELDS ({' '.join(name.upper() for name in (*MESSAGE_IDS, ATTEMPT))})]"
_APPENDED = re.compile(rb"\[APPENDUID (\d{1,10}) (\d{1,10})\]", re.IGNORECASE)


class ImapSentFolders:
    """Opens mailboxes where copies of sent mail are looked for (`ports.SentFolders`)."""

    def __init__(self, policy: DialPolicy, deadlines: ImapDeadlines) -> None:
        self._policy = policy
        self._deadlines = deadlines

    @contextlib.contextmanager
    def open(self, server: ImapServer) -> Iterator["ImapSentMail"]:
        dialogue = ImapDialogue(server, self._policy, self._deadlines, Deadline(VISIT))
        with closing(dialogue):
            with _failing():
                dialogue.open()
            yield ImapSentMail(dialogue)


class ImapSentMail:
    """The folders of sent mail of one mailbox, while its connection lasts (`ports.SentMail`)."""

    def __init__(self, dialogue: ImapDialogue) -> None:
        self._dialogue = dialogue
        self._names: tuple[str, ...] = ()
        self._open: Folder | None = None
        self._compared: dict[str, _Compared] = {}
        self._filed: list[_Mail] = []
        dialogue.client.normalise_times = False

    def look(self, wanted: LookedFor) -> Looked:
        copies: list[Copy] = []
        places: dict[str, int] = {}
        with _failing():
            for name in self._folders():
                folder = self._opened(name)
                places[name] = _validity(folder)
                copies += self._copies(folder, wanted)
                if any(copy.attempt_id == wanted.attempt_id for copy in copies):
                    break
        return Looked(copies, places)

    def file(self, header: bytes, message: bytes, at: datetime) -> Filed:
        with _failing():
            name = self._folders()[0]
            span = self._dialogue.deadlines.command + timedelta(
                seconds=(len(header) + len(message)) / BYTES_PER_SECOND
            )
            self._dialogue.be_done_within(Deadline(VISIT + span))
            with self._dialogue.asking("APPEND", span):
                said = self._append(name, (header, message), at)
        found = _APPENDED.search(said)
        filed = Filed(name, *((int(found[1]), int(found[2])) if found else (None, None)))
        fields = read_fields(header + message[:HEAD_BYTES])
        self._filed.append(_Mail(0, filed.uid or 0, at, fields))
        return filed

    def _folders(self) -> tuple[str, ...]:
        self._names = self._names or sent_folders(self._dialogue.folders())
        if not self._names:
            raise LookFailed("The mailbox has no folder for sent mail.", "no-sent-folder")
        return self._names

    def _opened(self, name: str) -> Folder:
        if self._open is None or self._open.name != name:
            self._open = self._dialogue.examine(name)
        return self._open

    def _copies(self, folder: Folder, wanted: LookedFor) -> list[Copy]:
        """The mails in the open folder with the wanted Message-ID."""
        compared = self._compared.setdefault(folder.name, _Compared())
        if found := _matching([*self._filed, *compared.mails], folder, wanted):
            return found
        edge = wanted.since - CLOCKS
        while not compared.reaches(edge, folder) and len(compared.mails) < MOST_COMPARED:
            compared.add(self._headers_before(folder, len(compared.mails)))
        found = _matching(compared.mails, folder, wanted) or _matching(
            self._searched(wanted, edge), folder, wanted
        )
        if not found and not compared.reaches(edge, folder):
            text = f"{folder.name} holds more new mail than can be compared."
            raise LookFailed(text, "too-much-mail")
        return found

    def _headers_before(self, folder: Folder, newest: int) -> Sequence["_Mail"]:
        """The headers of up to AT_ONCE mails below the `newest` ones, the newest of them first."""
        last = folder.messages - newest
        numbers = list(range(max(1, last - AT_ONCE + 1), last + 1))
        mails = self._headers(numbers, by_uid=False)
        if len(mails) != len(numbers):
            text = f"{self._dialogue.session.peer_name} told {len(mails)} of {len(numbers)} headers."
            raise LookFailed(text, "incomplete")
        return sorted(mails, key=lambda mail: mail.number, reverse=True)

    def _searched(self, wanted: LookedFor, edge: datetime) -> Sequence["_Mail"]:
        criteria = ["SINCE", edge.date(), "HEADER", "Message-ID", wanted.message_id]
        with self._dialogue.asking("SEARCH", self._dialogue.deadlines.command):
            uids = [int(uid) for uid in self._dialogue.client.search(criteria)]
        return self._headers(uids[-AT_ONCE:], by_uid=True) if uids else ()

    def _headers(self, numbers: Sequence[int], *, by_uid: bool) -> list["_Mail"]:
        client = self._dialogue.client
        client.use_uid = by_uid
        try:
            with self._dialogue.asking("FETCH", self._dialogue.deadlines.command, HEADERS_BYTES):
                found = client.fetch(numbers, ["UID", "INTERNALDATE", _WANTED])
                mails = [_mail(number, values, by_uid=by_uid) for number, values in found.items()]
        finally:
            client.use_uid = True
        return [mail for mail in mails if mail is not None]

    def _append(self, name: str, pieces: Sequence[bytes], at: datetime) -> bytes:
        """What the server says of it. The pieces go out as they are, never copied together."""
        session, size = self._dialogue.session, sum(map(len, pieces))
        folder = self._dialogue.client._normalise_folder(name)
        date = b'"%s"' % datetime_to_INTERNALDATE(at).encode()
        tag = session._command("APPEND", folder, b"(\\Seen)", date, b"{%d}" % size)
        while session._get_response() is not None:
            if session.tagged_commands[tag]:
                break  # refused, which the completion raises
        else:
            for piece in (*pieces, b"\r\n"):
                Wire.send(session, piece)  # past what hears the dialogue
        _, data = session._command_complete("APPEND", tag)
        return bytes(data[-1])


class _Mail:
    """The header of one mail, as far as it was asked for."""

    __slots__ = ("fields", "filed_at", "number", "uid")

    def __init__(self, number: int, uid: int, filed_at: datetime, fields: Fields) -> None:
        self.number = number
        self.uid = uid
        self.filed_at = filed_at
        self.fields = fields


class _Compared:
    """The headers of a folder's newest mails, newest first."""

    def __init__(self) -> None:
        self.mails: list[_Mail] = []
        self._last: Sequence[_Mail] = ()

    def add(self, batch: Sequence[_Mail]) -> None:
        self.mails += batch
        self._last = batch

    def reaches(self, edge: datetime, folder: Folder) -> bool:
        """Whether all mail since `edge` is among them; one that is dated back alone does not say so."""
        if len(self.mails) >= folder.messages:
            return True
        return bool(self._last) and all(mail.filed_at < edge for mail in self._last[-10:])


def _matching(mails: Sequence[_Mail], folder: Folder, wanted: LookedFor) -> list[Copy]:
    return [
        Copy(folder.name, _validity(folder), mail.uid, mail.filed_at, mail.fields.raw(ATTEMPT).strip())
        for mail in mails
        if is_same_message(mail.fields, wanted.message_id)
    ]


def _validity(folder: Folder) -> int:
    if folder.uid_validity is None:
        raise LookFailed(f"{folder.name} has no UIDVALIDITY, so nothing in it can be named.", "no-validity")
    return folder.uid_validity


def _mail(number: int, values: Mapping[bytes, Any], *, by_uid: bool) -> _Mail | None:
    """None for an answer that is not about what was asked for."""
    header = next((value for key, value in values.items() if key.startswith(b"BODY[HEADER")), None)
    uid = number if by_uid else values.get(b"UID")
    filed_at = values.get(b"INTERNALDATE")
    if not isinstance(header, bytes) or not isinstance(uid, int) or not isinstance(filed_at, datetime):
        return None
    return _Mail(number, uid, filed_at, read_fields(header))


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Whatever a server or the network does within comes out as LookFailed."""
    try:
        yield
    except Declined as declined:
        refusal = declined.refusal
        blames_login = refusal.command in {"LOGIN", "AUTHENTICATE"} and category_of(refusal) == "auth"
        text = f"The server answered {refusal} (to {refusal.command})."
        raise LookFailed(text, "declined", blames_login=blames_login) from None
    except (Broken, DialFailed) as broken:
        text = UNREACHABLE_NAME if broken.cause in UNTOLD else broken.text
        raise LookFailed(text, str(broken.cause)) from None
    except TimeoutError:
        text = f"The visit was not over within {VISIT.total_seconds():g} seconds."
        raise LookFailed(text, str(Cause.TIMEOUT)) from None
