"""An IMAP server on loopback for tests: real sockets, a few folders, and faults on request.

Knows as much of IMAP as a mailbox's test, a look into a folder (SEARCH by a header, UIDs and days, FETCH of
headers or whole mails) and APPEND need. For everything no server would say, `RawServer` in smtp_server plays
bytes.
"""

import base64
import binascii
import contextlib
import queue
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Self

from gobii_email.testing.smtp_server import RawServer, Script

_CRITERION = re.compile(rb'\b(UID|SINCE|HEADER)(?: "?Message-ID"?)? ("[^"]*"|\S+)', re.IGNORECASE)
_MECHANISMS = ("PLAIN", "XOAUTH2", "OAUTHBEARER")


@dataclass
class ImapFaults:
    """What goes wrong; change it while the server runs.

    `greeting` replaces the first line, `answers` maps a command (`EXAMINE`, `UID SEARCH`, or `UID` for all of
    them) to what is said in place of its whole answer (`TAG` stands for the tag), `injected` follows the
    consent to STARTTLS in clear. At a command in `drops` the line is cut, at APPEND after its literal;
    with `keeps_dropped` that mail is filed all the same. EXAMINE names no code in `untold`. Whoever
    fetches a UID in `refused` hears NO; one in `deadly` cuts the line; one in `left_out` is found, and its
    answer is without it.
    """

    greeting: bytes = b""
    answers: dict[str, bytes] = field(default_factory=dict)
    injected: bytes = b""
    drops: set[str] = field(default_factory=set)
    keeps_dropped: bool = False
    untold: set[str] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    deadly: set[int] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)


class ScriptedImapServer:
    """A mailbox server for `users` (name to password or token), encrypted by `security`.

    `folders` maps a name, in modified UTF-7, to its messages: header and body, as bytes; an empty one stands
    for a UID whose mail was deleted. `logins` has who
    signed in how, `heard` all that clients said. Without `has_idle` nobody can wait for news; those who do
    are counted by `waiting`, and hear what is given to `announce`. Use as a context manager.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        security: str = "ssl",
        users: Mapping[str, str] | None = None,
        folders: Mapping[str, list[bytes]] | None = None,
        mechanisms: Sequence[str] = _MECHANISMS,
        has_login: bool = True,
        has_idle: bool = True,
        faults: ImapFaults | None = None,
    ) -> None:
        self.users = dict(users or {})
        self.folders = dict(folders or {"INBOX": [], "Sent": []})
        self.faults = faults or ImapFaults()
        self.flags: dict[str, str] = {}
        self.dates: dict[bytes, datetime] = {}
        self.uid_validity = 1795292296
        self.logins: list[tuple[str, str, bool]] = []
        self._tls = tls
        self._security = security
        self._mechanisms = mechanisms
        self._has_login = has_login
        self._has_idle = has_idle
        self._idle: list[queue.SimpleQueue[bytes]] = []
        self._raw = RawServer(self._play)

    def __enter__(self) -> Self:
        self._raw.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._raw.__exit__(*exception)

    @property
    def port(self) -> int:
        return self._raw.port

    @property
    def heard(self) -> bytes:
        return self._raw.heard

    @property
    def connections(self) -> int:
        return len(self._raw.scripts)

    @property
    def waiting(self) -> int:
        """How many clients are in IDLE now."""
        return len(self._idle)

    def announce(self, said: bytes) -> None:
        """Says this to all who are in IDLE, byte for byte; nothing at all hangs up on them."""
        for heard in list(self._idle):
            heard.put(said)

    def deliver(self, message: bytes, folder: str = "INBOX") -> None:
        """Lays `message` into `folder`, and tells those who wait for news."""
        self.folders[folder].append(message)
        self.announce(f"* {len(self.folders[folder])} EXISTS\r\n".encode())

    def _play(self, script: Script) -> None:
        if self._security == "ssl":
            script.encrypt(_required(self._tls))
        _Conversation(self, script, is_encrypted=self._security == "ssl").run()


class _Conversation:
    """One client, from the greeting to its LOGOUT."""

    def __init__(self, server: ScriptedImapServer, script: Script, *, is_encrypted: bool) -> None:
        self._server = server
        self._script = script
        self._is_encrypted = is_encrypted
        self._selected: list[bytes] = []

    def run(self) -> None:
        self._script.say(self._server.faults.greeting or b"* OK [CAPABILITY IMAP4rev1] ready")
        while True:
            tag, _, rest = self._script.hear().rstrip(b"\r\n").partition(b" ")
            name, _, arguments = rest.partition(b" ")
            command = name.decode().upper()
            fault = self._fault(command, arguments)
            if fault is not None:
                self._script.write(fault.replace(b"TAG", tag))
                continue
            act = getattr(self, f"_{command.lower()}", None)
            if act is None:
                self._script.say(tag + b" BAD unknown command")
                continue
            act(tag, arguments)
            if command == "LOGOUT":
                return

    def _fault(self, command: str, arguments: bytes) -> bytes | None:
        both = f"{command} {arguments.split(b' ')[0].decode().upper()}"
        answers, drops = self._server.faults.answers, self._server.faults.drops
        if command != "APPEND" and drops & {command, both}:
            raise ConnectionError("cut")
        return answers.get(command, answers.get(both))

    def _capability(self, tag: bytes, _: bytes) -> None:
        words = ["IMAP4rev1", "UIDPLUS", *(["IDLE"] if self._server._has_idle else [])]
        if self._server._security == "starttls" and not self._is_encrypted:
            words += ["STARTTLS", "LOGINDISABLED"]
        else:
            words += [f"AUTH={name}" for name in self._server._mechanisms]
            words += [] if self._server._has_login else ["LOGINDISABLED"]
        self._script.say(f"* CAPABILITY {' '.join(words)}".encode(), tag + b" OK done")

    def _starttls(self, tag: bytes, _: bytes) -> None:
        self._script.write(tag + b" OK begin\r\n" + self._server.faults.injected)
        self._script.encrypt(_required(self._server._tls))
        self._is_encrypted = True

    def _login(self, tag: bytes, arguments: bytes) -> None:
        words = [_unquoted(word) for word in re.findall(rb'"(?:\\.|[^"\\])*"|\S+', arguments)]
        self._end_login(tag, "LOGIN", words[0], words[1])

    def _authenticate(self, tag: bytes, arguments: bytes) -> None:
        mechanism = arguments.decode().upper()
        self._script.say(b"+ ")
        initial = _decoded(self._script.hear())
        user, secret = _credentials(mechanism, initial)
        is_right = self._server.users.get(user) == secret
        if mechanism in ("XOAUTH2", "OAUTHBEARER") and not is_right:
            self._script.say(b"+ " + base64.b64encode(b'{"status":"400","schemes":"Bearer"}'))
            self._script.hear()
        self._end_login(tag, mechanism, user, secret)

    def _end_login(self, tag: bytes, mechanism: str, user: str, secret: str) -> None:
        is_right = self._server.users.get(user) == secret
        self._server.logins.append((user, mechanism, is_right))
        said = b" OK signed in" if is_right else b" NO [AUTHENTICATIONFAILED] Authentication failed."
        self._script.say(tag + said)

    def _list(self, tag: bytes, _: bytes) -> None:
        for name in self._server.folders:
            flags = f"\\HasNoChildren {self._server.flags.get(name, '')}".strip()
            self._script.say(f'* LIST ({flags}) "/" "{name}"'.encode())
        self._script.say(tag + b" OK listed")

    def _examine(self, tag: bytes, arguments: bytes) -> None:
        name = _unquoted(arguments)
        if name not in self._server.folders:
            self._script.say(tag + b" NO [NONEXISTENT] Unknown Mailbox: " + name.encode())
            return
        self._selected = self._server.folders[name]
        count = len(self._selected)
        codes = {"UIDVALIDITY": self._server.uid_validity, "UIDNEXT": count + 1}
        self._script.say(
            b"* FLAGS (\\Seen)",
            f"* {sum(map(bool, self._selected))} EXISTS".encode(),
            b"* 0 RECENT",
            *(
                f"* OK [{code} {number}] told".encode()
                for code, number in codes.items()
                if code not in self._server.faults.untold
            ),
            tag + b" OK [READ-ONLY] opened",
        )

    def _uid(self, tag: bytes, arguments: bytes) -> None:
        name, _, rest = arguments.partition(b" ")
        if name.upper() == b"FETCH":
            self._fetch(tag, rest, by_uid=True)
            return
        found = [str(uid) for uid, message in self._there() if self._fits(uid, message, rest)]
        self._script.say(" ".join(["* SEARCH", *found]).encode(), tag + b" OK searched")

    def _there(self) -> list[tuple[int, bytes]]:
        return [(uid, message) for uid, message in enumerate(self._selected, 1) if message]

    def _fits(self, uid: int, message: bytes, wanted: bytes) -> bool:
        """Whether it fits all of `UID a:b`, `SINCE date` and `HEADER Message-ID id` that are asked for."""
        asked = {name.upper(): value.strip(b'"') for name, value in _CRITERION.findall(wanted)}
        return (
            uid in _Numbers(asked.get(b"UID", b"1:*"), self._there()[-1][0])
            and self._date(message).date() >= _day(asked.get(b"SINCE", b"1-Jan-1970"))
            and asked.get(b"HEADER", b"") in message
        )

    def _date(self, message: bytes) -> datetime:
        return self._server.dates.get(message) or datetime.now(UTC)

    def _fetch(self, tag: bytes, arguments: bytes, *, by_uid: bool = False) -> None:
        numbers, _, items = arguments.partition(b" ")
        wanted, faults = _Numbers(numbers, len(self._selected)), self._server.faults
        if any(uid in wanted for uid in faults.deadly):
            raise ConnectionError("cut")
        if any(uid in wanted for uid in faults.refused):
            self._script.say(tag + b" NO [SERVERBUG] cannot read the mail")
            return
        for number, message in self._there():
            if number in wanted and number not in faults.left_out:
                self._script.write(self._fetched(number, message, items.upper(), by_uid=by_uid))
        self._script.say(tag + b" OK fetched")

    def _fetched(self, number: int, message: bytes, items: bytes, *, by_uid: bool) -> bytes:
        at = self._date(message)
        facts = [b"UID %d" % number] if by_uid or b"UID" in items else []
        if b"INTERNALDATE" in items:
            facts.append(f'INTERNALDATE "{at:%d-%b-%Y %H:%M:%S %z}"'.encode())
        if b"RFC822.SIZE" in items:
            facts.append(b"RFC822.SIZE %d" % len(message))
        if found := re.search(rb"BODY(?:\.PEEK)?(\[[^\]]*\])", items):
            part = _part(message, found[1])
            facts.append(b"BODY%s {%d}\r\n%s" % (found[1], len(part), part))
        return b"* %d FETCH (%s)\r\n" % (number, b" ".join(facts))

    def _append(self, tag: bytes, arguments: bytes) -> None:
        found = re.fullmatch(rb'("(?:\\.|[^"\\])*"|\S+)(?: \([^)]*\))?(?: "([^"]*)")? \{(\d+)\}', arguments)
        if found is None or _unquoted(found[1]) not in self._server.folders:
            self._script.say(tag + b" NO [TRYCREATE] no such folder")
            return
        self._script.say(b"+ go on")
        message = self._script.hear_exactly(int(found[3]))
        self._script.hear()
        folder = self._server.folders[_unquoted(found[1])]
        is_cut = "APPEND" in self._server.faults.drops
        if not is_cut or self._server.faults.keeps_dropped:
            folder.append(message)
            if found[2]:
                self._server.dates[message] = datetime.strptime(found[2].decode(), "%d-%b-%Y %H:%M:%S %z")
        if is_cut:
            raise ConnectionError("cut")
        self._script.say(b"%s OK [APPENDUID %d %d] filed" % (tag, self._server.uid_validity, len(folder)))

    def _idle(self, tag: bytes, _: bytes) -> None:
        news: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._script.say(b"+ idling")
        self._server._idle.append(news)
        try:
            while not self._script.heard_within(0.01):
                with contextlib.suppress(queue.Empty):
                    if not (said := news.get_nowait()):
                        raise ConnectionError("hangs up")
                    self._script.write(said)
        finally:
            self._server._idle.remove(news)
        self._script.hear()
        self._script.say(tag + b" OK no more news")

    def _logout(self, tag: bytes, _: bytes) -> None:
        self._script.say(b"* BYE see you", tag + b" OK done")


def _required(tls: ssl.SSLContext | None) -> ssl.SSLContext:
    if tls is None:
        raise ValueError("an encrypted server needs a TLS context")
    return tls


def _unquoted(word: bytes) -> str:
    bare = word[1:-1] if word[:1] == b'"' else word
    return re.sub(rb"\\(.)", rb"\1", bare).decode()


def _day(text: bytes) -> date:
    return datetime.strptime(text.decode() + " +0000", "%d-%b-%Y %z").date()


class _Numbers:
    """The numbers in a set such as `1,3:5,7:*`; the ends of a range may come in any order."""

    def __init__(self, text: bytes, last: int) -> None:
        parts = (part.partition(b":") for part in text.replace(b"*", b"%d" % last).split(b","))
        self._ranges = [sorted((int(first), int(end or first))) for first, _, end in parts]

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self._ranges)


def _part(message: bytes, name: bytes) -> bytes:
    """`[]`, `[HEADER]` or `[HEADER.FIELDS (…)]` of `message`."""
    if name == b"[]":
        return message
    header = message.partition(b"\r\n\r\n")[0]
    if wanted := re.search(rb"\(([^)]*)\)", name):
        names = {field.strip(b'"') for field in wanted[1].split()}
        lines = re.split(rb"\r\n(?![ \t])", header)
        header = b"\r\n".join(line for line in lines if line.partition(b":")[0].strip().upper() in names)
    return header.rstrip(b"\r\n") + b"\r\n\r\n"


def _decoded(line: bytes) -> bytes:
    try:
        return base64.b64decode(line.strip())
    except binascii.Error:
        return b""


def _credentials(mechanism: str, initial: bytes) -> tuple[str, str]:
    """Who signs in with what."""
    if mechanism == "PLAIN":
        _, user, secret = initial.decode().split("\0")
        return user, secret
    text = initial.decode()
    user = re.search(r"(?:user=|n,a=)([^\x01,]*)", text)
    token = re.search(r"auth=Bearer ([^\x01]*)", text)
    return (user.group(1) if user else "", token.group(1) if token else "")
