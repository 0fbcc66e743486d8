"""One connection to a mailbox's server, from dialling to the open folder.

Knows the order in which it is opened (RFC 9051, RFC 8314), what must be refused on the way, and how to
sign in. Reads only: folders are opened with EXAMINE. How bytes are read is left to the session.
"""

import contextlib
import imaplib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

from gobii_email.adapters import sasl
from gobii_email.adapters.dialer import Deadline, DialPolicy, VettedAddresses, ascii_host, dial
from gobii_email.adapters.imap_session import (
    BUDGET_BYTES,
    MAX_LINE_BYTES,
    Declined,
    ImapClient,
    ImapSession,
    OnLine,
    OnWait,
    unnoticed,
)
from gobii_email.adapters.tls import client_context
from gobii_email.adapters.wire import Broken
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import Auth, ImapServer, Security

MAX_FOLDERS = 1000
_SELF = '("name" "gobii-email" "vendor" "gobii")'
_UNOPENABLE = frozenset({"\\noselect", "\\nonexistent"})
LIST_BYTES = 1024 * 1024

# What the library's parser raises on answers that are none.
_UNPARSABLE = (
    imaplib.IMAP4.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class ImapDeadlines:
    """Total spans, one for each step. `body` is for fetching one mail, plus its size at 64 kB/s, `open` for
    all up to the open folder. `probe` bounds a whole test, which answers after exactly `blocked` for a host
    that it may not reach.
    """

    connect: timedelta = timedelta(seconds=15)
    greeting: timedelta = timedelta(seconds=30)
    tls: timedelta = timedelta(seconds=30)
    command: timedelta = timedelta(seconds=30)
    body: timedelta = timedelta(seconds=60)
    open: timedelta = timedelta(seconds=60)
    quit: timedelta = timedelta(seconds=1)
    probe: timedelta = timedelta(seconds=40)
    blocked: timedelta = timedelta(seconds=3)


@dataclass(frozen=True, slots=True)
class Folder:
    """An opened folder. UIDs mean something only together with `uid_validity`; None when not told."""

    name: str
    messages: int
    uid_validity: int | None
    uid_next: int | None


class ImapDialogue:
    """A connection that is opened step by step, or by `open` at once. Every step raises Broken or Declined.

    `mechanism` and `challenge` tell of the login: how it was done, and what a refused token was told. One
    that `resumes` takes up the TLS session of an earlier connection, which spares both most of its cost.
    """

    def __init__(
        self,
        server: ImapServer,
        policy: DialPolicy,
        deadlines: ImapDeadlines,
        within: Deadline | None = None,
        known: VettedAddresses | None = None,
        on_line: OnLine | None = None,
        on_wait: OnWait = unnoticed,
        *,
        resumes: bool = False,
    ) -> None:
        self.server = server
        self.deadlines = deadlines
        self.mechanism = ""
        self.offered_logins: list[str] = []
        self.challenge = ""
        self.tls = ""
        self.capabilities: tuple[str, ...] = ()
        self._policy = policy
        self._within = within
        self._resumes = resumes
        self._known = known
        self._peer_address = ""
        deadline = Deadline(deadlines.connect, within=within)
        self.session = ImapSession(server.host, server.port, deadline, on_line, on_wait)
        self._client: ImapClient | None = None

    def open(self) -> None:
        """All steps up to the login."""
        self.dial()
        if self.server.security is Security.SSL:
            self.encrypt()
        if self.server.security is Security.STARTTLS:
            self.come_to_tls()
            self.encrypt()
        else:
            self.read_greeting()
        self.read_capabilities()
        self.log_in()

    def be_done_within(self, deadline: Deadline | None) -> None:
        """Bounds all that is still to come; with None each step alone."""
        self._within = deadline

    def close(self) -> None:
        """Takes leave without waiting for the answer."""
        self.session.wait_unnoticed()
        if self._client is not None:
            self._begin("LOGOUT", self.deadlines.quit)
            with contextlib.suppress(Broken, imaplib.IMAP4.error):
                self.session._command("LOGOUT")
        self.session.shutdown()

    def dial(self) -> None:
        self._begin("the connection", self.deadlines.connect)
        self.session.peer_name = ascii_host(self.server.host)
        if self._resumes:
            self.session.endpoint = (self.session.peer_name, self.server.port, str(self.server.security))
        sock = dial(self.server.host, self.server.port, self._policy, self.session.deadline, self._known)
        self._peer_address = self.session.attach(sock)

    def encrypt(self) -> str:
        self._begin("the TLS handshake", self.deadlines.tls)
        self.tls = self.session.encrypt(client_context())
        self.session.forget_what_was_said_in_clear()
        return self.tls

    def read_greeting(self) -> str:
        """What the server says of itself. One that claims to know us already is left (RFC 9051 11.2)."""
        with self.asking("its greeting", self.deadlines.greeting):
            self.session.greet()
        if self.session.state == "AUTH":
            text = f"{self.session.peer_name} greets with PREAUTH: signed in before anybody was asked."
            raise Broken(Cause.PROTOCOL_ERROR, text, "preauth")
        return self.session.masked(bytes(self.session.welcome)).decode("utf-8", "backslashreplace")

    def come_to_tls(self) -> None:
        """All that is said in clear before the handshake, once it is dialled."""
        self.read_greeting()
        self.ask_for_tls()

    def ask_for_tls(self) -> None:
        """STARTTLS, up to where the handshake begins."""
        if "STARTTLS" not in self.read_capabilities():
            text = f"{self.session.peer_name} does not offer STARTTLS; without it nothing is said in clear."
            raise Broken(Cause.STARTTLS_NOT_OFFERED, text)
        with self.asking("STARTTLS", self.deadlines.tls):
            self.session._simple_command("STARTTLS")
            self.session.raise_injection()

    def read_capabilities(self) -> tuple[str, ...]:
        with self.asking("CAPABILITY", self.deadlines.command):
            self.capabilities = self.session.ask_for_capabilities()
        return self.capabilities

    def _offered_logins(self) -> list[str]:
        """The command LOGIN, and the mechanisms of AUTHENTICATE."""
        command = [] if "LOGINDISABLED" in self.capabilities else ["LOGIN"]
        found = [word[5:] for word in self.capabilities if word.startswith("AUTH=")]
        return list(dict.fromkeys([*command, *found]))

    def log_in(self) -> None:
        """Signs in; what is offered afterwards replaces the capabilities."""
        if self.server.auth is Auth.NONE:
            text = "A mailbox cannot be read without a sign-in."
            raise Broken(Cause.AUTH_NOT_OFFERED, text, "auth-required")
        if not self.tls and not self._policy.allows(ip_address(self._peer_address)):
            text = f"A password is not sent to {self.session.peer_name} without encryption."
            raise Broken(Cause.AUTH_WITHOUT_TLS, text)
        self.offered_logins = self._offered_logins()
        secret = sasl.revealed(self.server.username, self.server.secret, "IMAP")
        self.mechanism = self._mechanism(secret)
        words = self._words(secret)
        with self.asking("the login", self.deadlines.command):
            self._sign_in(words)
            told = self.session.capabilities_told()
        self.session.remember_encryption()
        self._client = ImapClient(self.session)
        if told:
            self.capabilities = told
        else:
            self.read_capabilities()
        self._introduce()

    def _introduce(self) -> None:
        """Says who we are (RFC 2971): some providers open no folder for programs that do not."""
        if "ID" in self.capabilities:
            with self.asking("ID", self.deadlines.command), contextlib.suppress(Declined):
                self.session._simple_command("ID", _SELF)

    def _mechanism(self, secret: str) -> str:
        """How to sign in: as the settings say, and as the server and the password allow."""
        offered = self.offered_logins
        if self.server.auth is Auth.OAUTH2:
            wanted = [sasl.oauth_mechanism(offered)]
        elif self.server.auth is Auth.PLAIN:
            wanted = ["PLAIN"]
        else:
            is_ascii = (self.server.username + secret).isascii()
            wanted = ["LOGIN", "PLAIN"] if is_ascii else ["PLAIN"]
            if not is_ascii and "PLAIN" not in offered:
                text = f"{self.session.peer_name} offers no login that can carry this password."
                raise Broken(Cause.AUTH_NOT_OFFERED, text, "password-not-ascii")
        for mechanism in wanted:
            if mechanism in offered:
                return mechanism
        text = f"{self.session.peer_name} does not offer the login method {wanted[0]}."
        raise Broken(Cause.AUTH_NOT_OFFERED, text)

    def _words(self, secret: str) -> list[bytes]:
        """What follows the word LOGIN, or is said first in AUTHENTICATE; hidden from now on."""
        name, server = self.server.username, self.server
        self.session.hide([secret.encode()])
        if self.mechanism == "LOGIN":
            return [_quoted(name), _quoted(secret)]
        try:
            match self.mechanism:
                case "PLAIN":
                    whole = sasl.plain(name, secret)
                case "OAUTHBEARER":
                    whole = sasl.oauthbearer(name, secret, server.host, server.port).encode()
                case _:
                    whole = sasl.build_xoauth2_string(name, secret).encode()
        except ValueError:
            text = "The user name or token contains characters that cannot be sent."
            raise Broken(Cause.SECRET_UNREADABLE, text) from None
        self.session.hide([whole])
        return [whole]

    def _sign_in(self, words: list[bytes]) -> None:
        session = self.session
        session.is_signing_in = True
        try:
            if self.mechanism == "LOGIN":
                session._simple_command("LOGIN", *words)
                session.state = "AUTH"
            else:
                session.authenticate(self.mechanism, self._answers(words[0]))
        finally:
            session.is_signing_in = False

    def _answers(self, initial: bytes) -> Any:
        """What imaplib calls with each challenge: first the login itself, then the end of a refused one."""
        end = sasl.OAUTHBEARER_SEEN if self.mechanism == "OAUTHBEARER" else b""
        left = [initial, end]

        def answer(challenge: bytes) -> bytes | None:
            if len(left) == 1 and self.server.auth is Auth.OAUTH2:
                self.challenge = self.session.masked(sasl.shown(challenge).encode()).decode()
            return left.pop(0) if left else None

        return answer

    def folders(self) -> Sequence[tuple[str, frozenset[str]]]:
        """The mailbox's folders that can be opened, at most MAX_FOLDERS: name, and flags in lower case.

        Flags are as in RFC 6154 where the server tells them: `\\sent`, `\\all`.
        """
        with self.asking("LIST", self.deadlines.command, LIST_BYTES):
            found = [
                (str(name), _lower(flags)) for flags, _, name in self.client.list_folders()[:MAX_FOLDERS]
            ]
            return [(name, flags) for name, flags in found if not flags & _UNOPENABLE]

    def list_folders(self) -> Sequence[str]:
        """The names of `folders`."""
        return [name for name, _ in self.folders()]

    def examine(self, name: str) -> Folder:
        """Opens the folder `name` for reading alone."""
        if any(ord(character) < 32 or ord(character) == 127 for character in name):
            text = "The name of the folder contains a line break or another control character."
            raise Broken(Cause.PROTOCOL_ERROR, text, "folder-name")
        with self.asking("EXAMINE", self.deadlines.command):
            found = self.client.select_folder(name, readonly=True)
            numbers = [_number(found.get(key)) for key in (b"EXISTS", b"UIDVALIDITY", b"UIDNEXT")]
        if numbers[0] is None:
            text = f"{self.session.peer_name} does not say how many messages are in {name}."
            raise Broken(Cause.PROTOCOL_ERROR, text)
        return Folder(name, numbers[0], numbers[1], numbers[2])

    def find(self, message_id: str) -> list[int]:
        """The UIDs in the open folder of mail with this Message-ID, which has to be one of ours."""
        with self.asking("SEARCH", self.deadlines.command):
            return [int(uid) for uid in self.client.search(["HEADER", "Message-ID", message_id])]

    @property
    def client(self) -> ImapClient:
        """The library's commands, each to be given within `asking`; there once it is signed in."""
        assert self._client is not None
        return self._client

    def _begin(
        self, doing: str, span: timedelta, budget: int = BUDGET_BYTES, longest_line: int = MAX_LINE_BYTES
    ) -> None:
        self.session.begin(doing, Deadline(span, within=self._within), budget, longest_line)

    @contextlib.contextmanager
    def asking(
        self, doing: str, span: timedelta, budget: int = BUDGET_BYTES, longest_line: int = MAX_LINE_BYTES
    ) -> Iterator[None]:
        """One command: its deadline, its budget of bytes, and what the library makes of nonsense."""
        self._begin(doing, span, budget, longest_line)
        try:
            yield
        except _UNPARSABLE:
            text = f"What {self.session.peer_name} sent during {doing} is not IMAP."
            raise Broken(Cause.PROTOCOL_ERROR, text) from None


def _quoted(text: str) -> bytes:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode()


def _lower(flags: Sequence[bytes]) -> frozenset[str]:
    return frozenset(flag.decode("ascii", "replace").lower() for flag in flags)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
