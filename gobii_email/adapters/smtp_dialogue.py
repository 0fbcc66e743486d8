"""The course of one submission, from dialling to the answer to the final dot.

Knows the order of the dialogue (RFC 6409, RFC 5321) and, when it breaks off, at which stage it
stood and whether the durable mark had been set. What the parts mean to a caller is left to the
transport and the probe; how bytes are read and written, to the session.
"""

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from gobii_email.adapters.dialer import Deadline, DialFailed, DialPolicy, ascii_host, dial
from gobii_email.adapters.smtp_login import login_for
from gobii_email.adapters.smtp_session import HEARTBEAT_SECONDS, Broken, Denied, SmtpSession
from gobii_email.adapters.tls import client_context
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused, SessionFacts
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.ports import Auth, Envelope, LeaseLost, Progress, Security, SmtpServer

Step = tuple[str, Callable[[], str]]

_LINE_WITH_DOT = re.compile(rb"^\.", re.MULTILINE)
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
_QUEUE_IDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bqueued as ([A-Z0-9.-]+)",  # Postfix, SendGrid
        r"\bqueued with id ([A-Z0-9.-]+)",  # Stalwart
        r"\bqueued \(([A-F0-9.-]+)\)",  # Haraka
        r"\bid=([A-Z0-9-]+)",  # Exim
        r"<([^<>\s]+)> \[InternalId",  # Exchange
        r"\bOK\s+\d+ (\S+) - gsmtp",  # Gmail
        r"^([A-Z0-9]+) Message accepted for delivery",  # Sendmail, OpenSMTPD
        r"\bqp (\d+)",  # qmail
        r"^OK ([0-9a-f]+-[0-9a-f-]+)$",  # Amazon SES
    )
)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Total spans, one for each step of the dialogue, however the server spreads its bytes.

    `body` is lengthened by the message's size at `body_bytes_per_second`. `dot` follows RFC 5321
    section 4.5.3.2.6. `probe` bounds a whole connection test.
    """

    connect: timedelta = timedelta(seconds=15)
    banner: timedelta = timedelta(seconds=30)
    ehlo: timedelta = timedelta(seconds=30)
    tls: timedelta = timedelta(seconds=30)
    auth: timedelta = timedelta(seconds=30)
    envelope: timedelta = timedelta(seconds=120)
    body: timedelta = timedelta(seconds=60)
    dot: timedelta = timedelta(seconds=600)
    quit: timedelta = timedelta(seconds=1)
    probe: timedelta = timedelta(seconds=20)
    body_bytes_per_second: int = 64_000

    def body_of(self, size: int) -> timedelta:
        return self.body + timedelta(seconds=size / self.body_bytes_per_second)


class Nobody:
    """Progress that nobody follows."""

    def reached(self, stage: Stage) -> None: ...

    def mark(self) -> None: ...


class Dialogue:
    """One connection from dialling to QUIT; knows how far it came when it ends."""

    def __init__(
        self,
        server: SmtpServer,
        policy: DialPolicy,
        deadlines: Deadlines,
        local_hostname: str,
        progress: Progress,
        within: Deadline | None = None,
    ) -> None:
        self.server = server
        self.stage = Stage.CONNECT
        self._policy = policy
        self._deadlines = deadlines
        self._within = within
        self._progress: Progress = progress
        self._recipients: Sequence[str] = ()
        self._refused: dict[str, Reply] = {}
        self._is_marked = False
        self._is_at_command = False
        self._tls = ""
        self._peer_address = ""
        self._stage_ms: dict[str, int] = {}
        self._entered_at = self._told_at = time.monotonic()
        self._session = SmtpSession(
            server.host,
            local_hostname=local_hostname,
            deadline=Deadline(deadlines.connect, within=within),
            on_wait=self._keep_telling,
        )

    def ending_of(self, story: Callable[[], Outcome]) -> Outcome:
        """What `story` returns, or the value for what kept it from returning."""
        try:
            return story()
        except (Broken, DialFailed) as ended:
            return self.lost(ended.cause, ended.text)
        except Denied as ended:
            return self._refusal(ended.reply)
        except LeaseLost:
            text = "This attempt had been taken over, so the message was not finished."
            return self.lost(Cause.LEASE_LOST, text)

    def lost(self, cause: Cause, text: str) -> Lost:
        self._is_at_command = self._is_at_command and cause in _OUR_OWN_REASONS
        return Lost(self.stage, cause, text, self._is_marked, dict(self._refused), self.facts())

    def _refusal(self, reply: Reply) -> Refused:
        self._is_at_command = self._is_at_command and reply.code != 421
        if self.stage is Stage.RCPT:
            # An ending in the middle of the recipients is the answer for all without one of their own.
            self._refused = {address: self._refused.get(address, reply) for address in self._recipients}
        return Refused(self.stage, reply, dict(self._refused), self.facts())

    def facts(self) -> SessionFacts:
        self._stop_the_clock()
        offered = self._session.esmtp_features
        extensions = tuple(name for name in _EXTENSIONS_THAT_COUNT if name.lower() in offered)
        return SessionFacts(dict(self._stage_ms), self._tls, self._peer_address, extensions)

    def quit(self) -> str:
        self._is_at_command = False
        self._begin("QUIT", Deadline(self._deadlines.quit, within=self._within))
        return str(self._session.command("QUIT"))

    def close(self) -> None:
        """Takes leave where the server awaits a command, and closes the socket in any case."""
        self._progress = Nobody()
        if self._is_at_command:
            with contextlib.suppress(Broken, Denied):
                self.quit()
        self._session.close()

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
        self._enter(Stage.CONNECT, "the connection", self._deadlines.connect)
        self._session.peer_name = ascii_host(self.server.host)
        self._session.sock = dial(self.server.host, self.server.port, self._policy, self._session.deadline)
        try:
            self._peer_address = str(self._session.sock.getpeername()[0])
        except OSError:
            text = f"{self._session.peer_name} closed the connection at once."
            raise Broken(Cause.CONNECTION_LOST, text) from None
        return ""

    def read_greeting(self) -> str:
        # Part of CONNECT; behind implicit TLS the dialogue comes back to it.
        self._resume(Stage.CONNECT, "its greeting", self._deadlines.banner)
        try:
            return self._expect(self._session.read_reply(), 220)
        except Broken as ended:
            if ended.cause is not Cause.TIMEOUT or self._tls:
                raise
            hint = "A server that expects TLS at once is silent like this: SSL may be the right setting."
            raise Broken(ended.cause, f"{ended.text} {hint}") from None

    def introduce(self) -> str:
        self._enter(Stage.EHLO, "EHLO", self._deadlines.ehlo)
        said = self._expect(self._session.introduce(), 250)
        self._is_at_command = True
        return said

    def start_tls(self) -> str:
        self._enter(Stage.TLS, "STARTTLS", self._deadlines.tls)
        if not self._session.has_extn("starttls"):
            text = f"{self._session.peer_name} does not offer STARTTLS; without it nothing is said in clear."
            raise Broken(Cause.STARTTLS_NOT_OFFERED, text)
        self._expect(self._session.command("STARTTLS"), 220)
        self._is_at_command = False
        self._session.raise_injection()
        self._tls = self._session.encrypt(client_context())
        # Forgets the extensions offered in clear (RFC 3207 section 4.2).
        self.introduce()
        return self._tls

    def encrypt(self) -> str:
        self._enter(Stage.TLS, "the TLS handshake", self._deadlines.tls)
        self._tls = self._session.encrypt(client_context())
        return self._tls

    def log_in(self) -> str:
        self._enter(Stage.AUTH, "the login", self._deadlines.auth)
        if not self._tls and not self._policy.allows(ip_address(self._peer_address)):
            text = f"A password is not sent to {self._session.peer_name} without encryption."
            raise Broken(Cause.AUTH_WITHOUT_TLS, text)
        login = login_for(self.server)
        self._session.hide(login.secrets)
        if login.mechanism not in self._session.esmtp_features.get("auth", "").upper().split():
            text = f"{self._session.peer_name} does not offer the login method {login.mechanism}."
            raise Broken(Cause.AUTH_NOT_OFFERED, text)
        reply = self._session.command("AUTH", login.opening)
        for answer in login.answers:
            if reply.code != 334:
                break
            reply = self._session.command(answer)
        return self._expect(reply, 235)

    def name_sender(self, sender: str, parameters: Sequence[str] = ()) -> str:
        self._enter(Stage.MAIL, "MAIL FROM", self._deadlines.envelope)
        return self._mail(sender, parameters)

    def _mail(self, sender: str, parameters: Sequence[str]) -> str:
        return self._expect(self._session.command("MAIL", " ".join((f"FROM:<{sender}>", *parameters))), 250)

    def name_recipient(self, recipient: str) -> str:
        self._recipients = (recipient,)
        self._begin_recipients()
        return self._expect(self._session.command("RCPT", f"TO:<{recipient}>"), 250, 251, 252)

    def ask(self, command: str) -> str:
        return self._expect(self._session.command(command), 250)

    def hand_over(self, envelope: Envelope, wire: bytes) -> Outcome:
        for _name, step in self.opening():
            step()
        self._enter(Stage.MAIL, "MAIL FROM", self._deadlines.envelope)
        self._mail(envelope.sender, self._mail_parameters(envelope, wire))
        last = self._name_recipients(envelope)
        if len(self._refused) == len(set(envelope.recipients)):
            return self._refusal(last)
        self._write_text(wire)
        return self._finish()

    def _mail_parameters(self, envelope: Envelope, wire: bytes) -> list[str]:
        offers = self._session.has_extn
        parameters = []
        if offers("size"):
            self._require_room_for(wire)
            parameters.append(f"SIZE={len(wire)}")
        if not wire.isascii() and offers("8bitmime"):
            parameters.append("BODY=8BITMIME")
        if not all(address.isascii() for address in (envelope.sender, *envelope.recipients)):
            if not offers("smtputf8"):
                text = f"{self._session.peer_name} does not take addresses with letters beyond ASCII."
                raise Broken(Cause.SMTPUTF8_REQUIRED, text)
            parameters.append("SMTPUTF8")
        if offers("dsn"):
            parameters += ["RET=HDRS", f"ENVID={_xtext(envelope.envelope_id)}"]
        return parameters

    def _require_room_for(self, wire: bytes) -> None:
        announced = self._session.esmtp_features["size"].split()
        limit = int(announced[0]) if announced and re.fullmatch(r"[0-9]{1,20}", announced[0]) else 0
        if 0 < limit < len(wire):
            text = (
                f"{self._session.peer_name} takes messages of up to {limit} bytes; this one has {len(wire)}."
            )
            raise Broken(Cause.MESSAGE_TOO_LARGE, text)

    def _name_recipients(self, envelope: Envelope) -> Reply:
        """The last answer; refusals are kept in passing."""
        self._recipients = envelope.recipients
        self._begin_recipients()
        for recipient in dict.fromkeys(envelope.recipients):
            reply = self._session.command("RCPT", self._rcpt_arguments(recipient))
            if reply.code == 421:
                raise Denied(reply)
            try:
                self._expect(reply, 250, 251, 252)
            except Denied:
                self._refused[recipient] = reply
        return reply

    def _begin_recipients(self) -> None:
        # MAIL and all RCPT share one deadline.
        self._enter_within(Stage.RCPT, "RCPT TO", self._session.deadline)

    def _rcpt_arguments(self, recipient: str) -> str:
        arguments = f"TO:<{recipient}>"
        if self._session.has_extn("dsn"):
            arguments += " NOTIFY=FAILURE,DELAY"
            if recipient.isascii():
                arguments += f" ORCPT=rfc822;{_xtext(recipient)}"
        return arguments

    def _write_text(self, wire: bytes) -> None:
        self._enter(Stage.DATA, "the message text", self._deadlines.body_of(len(wire)))
        self._expect(self._session.command("DATA"), 354)
        self._is_at_command = False
        try:
            self._session.send(_LINE_WITH_DOT.sub(b"..", wire))
        except Broken as ended:
            raise self._last_words() or ended from None
        self._session.raise_early_answer()

    def _last_words(self) -> Denied | None:
        """The refusal a server may have sent before it stopped reading."""
        self._session.deadline = Deadline(self._deadlines.quit, within=self._within)
        with contextlib.suppress(Broken):
            reply = self._session.read_reply()
            return Denied(reply) if reply.code >= 400 else None
        return None

    def _finish(self) -> Outcome:
        self._progress.mark()
        self._is_marked = True
        self._resume(Stage.DOT, "the end of the message", self._deadlines.dot)
        self._session.send(b".\r\n")
        reply = self._session.read_reply()
        self._is_at_command = True
        if 300 <= reply.code < 400:
            text = f"{self._session.peer_name} answered {reply} to the end of the message."
            raise Broken(Cause.PROTOCOL_ERROR, text)
        if reply.code >= 400:
            raise Denied(reply)
        return Accepted(reply, dict(self._refused), queue_id(reply), self.facts())

    def _enter(self, stage: Stage, doing: str, span: timedelta) -> None:
        self._enter_within(stage, doing, Deadline(span, within=self._within))

    def _enter_within(self, stage: Stage, doing: str, deadline: Deadline) -> None:
        self._move_to(stage, doing, deadline)
        self._tell()

    def _resume(self, stage: Stage, doing: str, span: timedelta) -> None:
        self._move_to(stage, doing, Deadline(span, within=self._within))

    def _move_to(self, stage: Stage, doing: str, deadline: Deadline) -> None:
        self._stop_the_clock()
        self.stage = stage
        self._begin(doing, deadline)

    def _begin(self, doing: str, deadline: Deadline) -> None:
        self._session.doing = doing
        self._session.deadline = deadline

    def _stop_the_clock(self) -> None:
        now = time.monotonic()
        spent = self._stage_ms.get(self.stage, 0) + round((now - self._entered_at) * 1000)
        self._stage_ms[str(self.stage)] = spent
        self._entered_at = now

    def _tell(self) -> None:
        self._progress.reached(self.stage)
        self._told_at = time.monotonic()

    def _keep_telling(self) -> None:
        # The lease lives longer than one heartbeat; the mark has extended it beyond the dot.
        if not self._is_marked and time.monotonic() - self._told_at >= HEARTBEAT_SECONDS:
            self._tell()

    def _expect(self, reply: Reply, *codes: int) -> str:
        if reply.code in codes:
            return str(reply)
        if reply.code >= 400:
            raise Denied(reply)
        said_to = self._session.doing
        text = f"{self._session.peer_name} answered “{reply}” to {said_to}; {codes[0]} belongs there."
        raise Broken(Cause.PROTOCOL_ERROR, text)


def queue_id(reply: Reply) -> str:
    """The id under which the server says it queued the message, or ""."""
    for pattern in _QUEUE_IDS:
        if found := pattern.search(reply.text):
            return found.group(1)[:255].rstrip(".")
    return ""


def _xtext(text: str) -> str:
    """RFC 3461 section 4."""
    return re.sub(r"[^!-*,-<>-~]", lambda found: f"+{ord(found.group()):02X}", text)
