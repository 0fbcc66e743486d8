"""One connection to a submission server, from dialling to QUIT.

Knows the order in which it is opened (RFC 6409, RFC 3207, RFC 4954), at which stage it stands and
how long each took. What is said of a message is left to the submission, how bytes are read and
written to the session.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from gobii_email.adapters.dialer import Deadline, DialPolicy, VettedAddresses, ascii_host, dial
from gobii_email.adapters.sasl import explained
from gobii_email.adapters.smtp_login import login_for
from gobii_email.adapters.smtp_session import Denied, SmtpSession
from gobii_email.adapters.tls import client_context
from gobii_email.adapters.wire import HEARTBEAT_SECONDS, Broken
from gobii_email.domain.outcomes import Cause, Lost, SessionFacts
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.ports import Auth, Progress, Security, SmtpServer

MAX_AGE_SECONDS = 300.0

Step = tuple[str, Callable[[], str]]

_EXTENSIONS_THAT_COUNT = (
    "8BITMIME",
    "AUTH",
    "DSN",
    "ENHANCEDSTATUSCODES",
    "PIPELINING",
    "SIZE",
    "SMTPUTF8",
    "STARTTLS",
)
# Why we leave although the server would go on.
_OUR_OWN_REASONS = frozenset(
    {
        Cause.STARTTLS_NOT_OFFERED,
        Cause.AUTH_NOT_OFFERED,
        Cause.AUTH_WITHOUT_TLS,
        Cause.SECRET_UNREADABLE,
        Cause.SMTPUTF8_REQUIRED,
        Cause.MESSAGE_TOO_LARGE,
    }
)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Total spans, one for each step of the dialogue, however the server spreads its bytes.

    `body` is lengthened by the message's size at `body_bytes_per_second`. `dot` follows RFC 5321
    section 4.5.3.2.6. After `reset` a used connection that does not answer is given up. `probe` bounds
    a whole connection test, which answers after exactly `blocked` for a host that it may not reach.
    """

    connect: timedelta = timedelta(seconds=15)
    banner: timedelta = timedelta(seconds=30)
    ehlo: timedelta = timedelta(seconds=30)
    tls: timedelta = timedelta(seconds=30)
    auth: timedelta = timedelta(seconds=30)
    envelope: timedelta = timedelta(seconds=120)
    body: timedelta = timedelta(seconds=60)
    dot: timedelta = timedelta(seconds=600)
    reset: timedelta = timedelta(seconds=10)
    quit: timedelta = timedelta(seconds=1)
    probe: timedelta = timedelta(seconds=40)
    blocked: timedelta = timedelta(seconds=3)
    body_bytes_per_second: int = 64_000

    def body_of(self, size: int) -> timedelta:
        return self.body + timedelta(seconds=size / self.body_bytes_per_second)


class Nobody:
    """Progress that nobody follows."""

    def reached(self, stage: Stage) -> None: ...

    def mark(self) -> None: ...


class Dialogue:
    """A connection that carries one message after the other; knows how far it came when it ends.

    `messages` counts those it was used for. `is_at_command` says that the server awaits a command,
    `is_last` that it should get no further message on this connection.
    `known` spares looking addresses up, `resumes` verifying the certificate: a test does both anew.
    `mechanism` and `challenge` tell of the login: how it was done, and what a refused token was told.
    """

    def __init__(
        self,
        server: SmtpServer,
        policy: DialPolicy,
        deadlines: Deadlines,
        local_hostname: str,
        within: Deadline | None = None,
        known: VettedAddresses | None = None,
        *,
        resumes: bool = False,
        make_session: Callable[..., SmtpSession] = SmtpSession,
    ) -> None:
        self.server = server
        self.deadlines = deadlines
        self.is_open = False
        self.is_at_command = False
        self.is_last = False
        self.messages = 0
        self.mechanism = ""
        self.challenge = ""
        self._policy = policy
        self._within = within
        self._known = known
        self._resumes = resumes
        self._begun_at = time.monotonic()
        self._tls = ""
        self._peer_address = ""
        self._extensions: tuple[str, ...] = ()
        self.session = make_session(
            server.host,
            local_hostname=local_hostname,
            deadline=Deadline(deadlines.connect, within=within),
            on_wait=self._keep_telling,
        )
        self.attend(Nobody())

    def attend(self, progress: Progress) -> None:
        """Begins the account of another message, told to `progress`."""
        self.stage = Stage.MAIL if self.is_open else Stage.CONNECT
        self._progress = progress
        self._stage_ms: dict[str, int] = {}
        self._entered_at = self._told_at = time.monotonic()

    def attend_to_nobody(self, span: timedelta | None = None) -> None:
        """Leaves the message's caller alone; what is said from now on takes at most `span`."""
        self.attend(Nobody())
        if span is not None:
            self.session.deadline = Deadline(span, within=self._within)

    def be_done_within(self, deadline: Deadline) -> None:
        """Bounds all that is still to come."""
        self._within = deadline

    def is_worn_out(self, messages: int) -> bool:
        """Whether it cannot or should not carry another message, where `messages` is the most."""
        return not (
            self.is_open
            and self.is_at_command
            and not self.is_last
            and not self.session.is_out_of_step
            and self.messages < messages
            and self.age_seconds < MAX_AGE_SECONDS
        )

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self._begun_at

    def lost(self, cause: Cause, text: str) -> Lost:
        self.is_at_command = self.is_at_command and cause in _OUR_OWN_REASONS
        return Lost(self.stage, cause, text, facts=self.facts())

    def facts(self) -> SessionFacts:
        self._stop_the_clock()
        return SessionFacts(self._stage_ms, self._tls, self._peer_address, self._extensions)

    def quit(self) -> str:
        self.is_at_command = False
        self._begin("QUIT", Deadline(self.deadlines.quit, within=self._within))
        return str(self.session.command("QUIT"))

    def close(self) -> None:
        """Takes leave where the server awaits a command, without waiting for its answer."""
        if self.is_at_command:
            self.attend_to_nobody(self.deadlines.quit)
            with contextlib.suppress(Broken):
                self.session.send(b"QUIT\r\n")
        self.drop()

    def drop(self) -> None:
        """Closes the socket without a word."""
        self.is_open = self.is_at_command = False
        self.attend(Nobody())
        self.session.close()

    def open(self) -> None:
        """Takes all steps that come before the first envelope."""
        if not self.is_open:
            for _name, step in self.opening():
                step()
            self.is_open = True

    def opening(self) -> list[Step]:
        """What comes before the envelope, in this server's order."""
        steps: list[Step] = [("connect", self.dial)]
        if self.server.security is Security.SSL:
            steps.append(("tls", self.encrypt))
        steps += [("greeting", self.read_greeting), ("ehlo", self.introduce)]
        if self.server.security is Security.STARTTLS:
            steps.append(("tls", self.start_tls))
        if self.server.auth is not Auth.NONE:
            steps.append(("auth", self.log_in))
        return steps

    def dial(self) -> str:
        self.enter(Stage.CONNECT, "the connection", self.deadlines.connect)
        self.session.peer_name = ascii_host(self.server.host)
        if self._resumes:
            self.session.endpoint = (self.session.peer_name, self.server.port, str(self.server.security))
        sock = dial(self.server.host, self.server.port, self._policy, self.session.deadline, self._known)
        self._peer_address = self.session.attach(sock)
        return ""

    def read_greeting(self) -> str:
        # Part of CONNECT; behind implicit TLS the dialogue comes back to it.
        self.resume(Stage.CONNECT, "its greeting", self.deadlines.banner)
        try:
            return self.expect(self.session.read_reply(), 220)
        except Broken as ended:
            if ended.cause is not Cause.TIMEOUT or self._tls:
                raise
            hint = "A server that expects TLS at once is silent like this: SSL may be the right setting."
            raise Broken(ended.cause, f"{ended.text} {hint}") from None

    def introduce(self) -> str:
        self.enter(Stage.EHLO, "EHLO", self.deadlines.ehlo)
        self._extensions = ()
        said = self.expect(self.session.introduce(), 250)
        offered = self.session.esmtp_features
        self._extensions = tuple(name for name in _EXTENSIONS_THAT_COUNT if name.lower() in offered)
        self.session.remember_encryption()
        self.is_at_command = True
        return said

    def start_tls(self) -> str:
        self.ask_for_tls()
        self._tls = self.session.encrypt(client_context())
        # Forgets the extensions offered in clear (RFC 3207 section 4.2).
        self.introduce()
        return self._tls

    def come_to_tls(self) -> None:
        """All that is said in clear before the handshake, once it is dialled."""
        self.read_greeting()
        self.introduce()
        self.ask_for_tls()

    def ask_for_tls(self) -> str:
        """STARTTLS, up to where the handshake begins."""
        self.enter(Stage.TLS, "STARTTLS", self.deadlines.tls)
        if not self.session.has_extn("starttls"):
            text = f"{self.session.peer_name} does not offer STARTTLS; without it nothing is said in clear."
            raise Broken(Cause.STARTTLS_NOT_OFFERED, text)
        said = self.expect(self.session.command("STARTTLS"), 220)
        self.is_at_command = False
        self.session.raise_injection()
        return said

    def encrypt(self) -> str:
        self.enter(Stage.TLS, "the TLS handshake", self.deadlines.tls)
        self._tls = self.session.encrypt(client_context())
        return self._tls

    def log_in(self) -> str:
        self.enter(Stage.AUTH, "the login", self.deadlines.auth)
        if not self._tls and not self._policy.allows(ip_address(self._peer_address)):
            text = f"A password is not sent to {self.session.peer_name} without encryption."
            raise Broken(Cause.AUTH_WITHOUT_TLS, text)
        login = login_for(self.server, self.offered_logins)
        self.mechanism = login.mechanism
        self.session.hide(login.secrets)
        if login.mechanism not in self.offered_logins:
            text = f"{self.session.peer_name} does not offer the login method {login.mechanism}."
            raise Broken(Cause.AUTH_NOT_OFFERED, text)
        reply = self.session.command("AUTH", login.opening)
        for answer in login.answers:
            if reply.code != 334:
                break
            if self.server.auth is Auth.OAUTH2:
                self.challenge = self.session.masked(explained(reply.text).encode()).decode()
            reply = self.session.command(answer)
        return self.expect(reply, 235)

    @property
    def offered_logins(self) -> list[str]:
        return self.session.esmtp_features.get("auth", "").upper().split()

    def name_sender(self, sender: str) -> str:
        self.enter(Stage.MAIL, "MAIL FROM", self.deadlines.envelope)
        return self.ask(f"MAIL FROM:<{sender}>")

    def name_recipient(self, recipient: str) -> str:
        self.enter_within_the_same(Stage.RCPT, "RCPT TO")
        return self.expect(self.session.command("RCPT", f"TO:<{recipient}>"), 250, 251, 252)

    def ask(self, command: str) -> str:
        return self.expect(self.session.command(command), 250)

    def enter(self, stage: Stage, doing: str, span: timedelta) -> None:
        """Begins a step of the dialogue, and tells so."""
        self.resume(stage, doing, span)
        self._tell()

    def enter_within_the_same(self, stage: Stage, doing: str) -> None:
        """Begins a step that shares the deadline of the one before."""
        self._move_to(stage, doing, self.session.deadline)
        self._tell()

    def resume(self, stage: Stage, doing: str, span: timedelta) -> None:
        """Begins a step that need not be told."""
        self._move_to(stage, doing, Deadline(span, within=self._within))

    def _move_to(self, stage: Stage, doing: str, deadline: Deadline) -> None:
        self._stop_the_clock()
        self.stage = stage
        self._begin(doing, deadline)

    def _begin(self, doing: str, deadline: Deadline) -> None:
        self.session.doing = doing
        self.session.deadline = deadline

    def _stop_the_clock(self) -> None:
        now = time.monotonic()
        spent = round((now - self._entered_at) * 1000)
        stage = str(self.stage)
        self._stage_ms[stage] = self._stage_ms.get(stage, 0) + spent
        self._entered_at = now

    def _tell(self) -> None:
        self._progress.reached(self.stage)
        self._told_at = time.monotonic()

    def _keep_telling(self) -> None:
        # The lease lives longer than one heartbeat; the mark has extended it beyond the dot.
        if self.stage is not Stage.DOT and time.monotonic() - self._told_at >= HEARTBEAT_SECONDS:
            self._tell()

    def expect(self, reply: Reply, *codes: int) -> str:
        if reply.code in codes:
            return str(reply)
        if reply.code >= 400:
            raise Denied(reply)
        said_to = self.session.doing
        text = f"{self.session.peer_name} answered “{reply}” to {said_to}; {codes[0]} belongs there."
        raise Broken(Cause.PROTOCOL_ERROR, text)
