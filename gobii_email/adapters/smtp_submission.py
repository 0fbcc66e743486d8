"""One message over one connection, from MAIL to the answer to the final dot.

Knows what is said of a message (RFC 5321, RFC 1870, RFC 3461, RFC 6531), in one go where the server
offers PIPELINING (RFC 2920), and how the endings become values: each reply is judged at the stage
of its own command, so that nothing but the speed differs. Connections are opened by the dialogue
and kept by the sender.
"""

import re
from collections import deque
from datetime import timedelta

from gobii_email.adapters.dialer import Deadline, DialFailed
from gobii_email.adapters.smtp_dialogue import Dialogue
from gobii_email.adapters.smtp_session import Denied
from gobii_email.adapters.smtp_text import Text
from gobii_email.adapters.wire import Broken
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.ports import Envelope, LeaseLost, NotNow, Progress

# So few that neither side's buffers fill up while nobody reads: some 25 kB there, 10 kB back.
COMMANDS_AT_ONCE = 100
# Hearing a refused message out is worth less than a new connection. Shorter than a heartbeat.
HEARING_OUT = timedelta(seconds=5)

_RECIPIENT_TAKEN = (250, 251, 252)
_NO_XTEXT = re.compile(r"[^!-*,-<>-~]")
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


class Stale(Exception):
    """The server had given up a used connection before it took anything of the new message."""


class Submission:
    """Hands `text` over; the server never sees its end before `progress.mark()` returned."""

    def __init__(self, dialogue: Dialogue, envelope: Envelope, text: Text, progress: Progress) -> None:
        self._dialogue = dialogue
        self._session = dialogue.session
        self._envelope = envelope
        self._text = text
        self._progress = progress
        self._recipients = tuple(dict.fromkeys(envelope.recipients))
        self._refused: dict[str, Reply] = {}
        self._is_marked = False
        self._is_again = dialogue.messages > 0
        self._unsaid: deque[list[str]] = deque()
        dialogue.messages += 1
        dialogue.attend(progress)

    def run(self) -> Outcome:
        """How it ended. Raises Stale on a used connection, when a new one should be tried."""
        try:
            return self._hand_over()
        except (Broken, DialFailed) as ended:
            return self._lost(ended.cause, ended.text)
        except Denied as ended:
            return self._refusal(ended.reply)
        except NotNow as switch:
            return self._lost(Cause.SUSPENDED, str(switch))
        except LeaseLost:
            text = "This attempt had been taken over, so the message was not finished."
            return self._lost(Cause.LEASE_LOST, text)

    def _lost(self, cause: Cause, text: str) -> Lost:
        lost = self._dialogue.lost(cause, text)
        return Lost(lost.stage, cause, text, self._is_marked, self._refused, lost.facts)

    def _refusal(self, reply: Reply) -> Refused:
        stage, facts = self._dialogue.stage, self._dialogue.facts()
        if stage is Stage.RCPT:
            # An ending in the middle of the recipients is the answer for all without one of their own.
            self._refused = {address: self._refused.get(address, reply) for address in self._recipients}
        # It may be about the connection: some servers take only so many messages on one.
        self._dialogue.is_last = self._is_again and stage is Stage.MAIL and reply.code < 500
        if reply.code == 421 or self._session.owed:
            self._dialogue.is_at_command = reply.code != 421 and self._is_heard_out()
        return Refused(stage, reply, self._refused, facts)

    def _hand_over(self) -> Outcome:
        self._dialogue.open()
        self._dialogue.enter(Stage.MAIL, "MAIL FROM", self._dialogue.deadlines.envelope)
        self._unsaid.extend(self._groups())
        if self._is_again:
            self._clear_the_table()
        self._name_sender()
        self._name_recipients()
        self._say_text()
        return self._finish()

    def _groups(self) -> list[list[str]]:
        """All commands up to DATA, in groups of those that are said in one go."""
        size = COMMANDS_AT_ONCE if self._session.has_extn("pipelining") else 1
        commands = ["RSET"] if self._is_again else []
        commands.append(" ".join((f"MAIL FROM:<{self._envelope.sender}>", *self._mail_parameters())))
        commands += [self._rcpt_command(recipient) for recipient in self._recipients]
        commands.append("DATA")
        return [commands[begin : begin + size] for begin in range(0, len(commands), size)]

    def _mail_parameters(self) -> list[str]:
        offers = self._session.has_extn
        parameters = []
        if offers("size"):
            self._require_room()
            parameters.append(f"SIZE={self._text.size}")
        if not self._text.is_ascii and offers("8bitmime"):
            parameters.append("BODY=8BITMIME")
        if not all(map(str.isascii, (self._envelope.sender, *self._recipients))):
            if not offers("smtputf8"):
                text = f"{self._session.peer_name} does not take addresses with letters beyond ASCII."
                raise Broken(Cause.SMTPUTF8_REQUIRED, text)
            parameters.append("SMTPUTF8")
        if offers("dsn"):
            parameters += ["RET=HDRS", f"ENVID={_xtext(self._envelope.envelope_id)}"]
        return parameters

    def _require_room(self) -> None:
        announced = self._session.esmtp_features["size"].split()
        limit = int(announced[0]) if announced and re.fullmatch(r"[0-9]{1,20}", announced[0]) else 0
        if 0 < limit < self._text.size:
            host = self._session.peer_name
            text = f"{host} takes messages of up to {limit} bytes; this one has {self._text.size}."
            raise Broken(Cause.MESSAGE_TOO_LARGE, text)

    def _rcpt_command(self, recipient: str) -> str:
        command = f"RCPT TO:<{recipient}>"
        if self._session.has_extn("dsn"):
            command += " NOTIFY=FAILURE,DELAY"
            if recipient.isascii():
                command += f" ORCPT=rfc822;{_xtext(recipient)}"
        return command

    def _hear(self, *welcome: int) -> Reply | None:
        """The reply to the next command, said now if it has not been; None when it is welcome."""
        if not self._session.owed:
            self._session.ask(self._unsaid.popleft())
        return self._session.hear(*welcome)

    def _demand(self, *welcome: int) -> None:
        reply = self._hear(*welcome)
        if reply is not None:
            self._dialogue.expect(reply, *welcome)

    def _clear_the_table(self) -> None:
        """RSET: its answer shows at once whether a used connection still lives."""
        deadline = self._session.deadline
        self._session.deadline = Deadline(self._dialogue.deadlines.reset, within=deadline)
        try:
            self._demand(250)
        except (Broken, Denied):
            raise Stale from None
        self._session.deadline = deadline

    def _name_sender(self) -> None:
        try:
            self._demand(250)
        except (Broken, Denied) as ended:
            if self._is_again and _is_goodbye(ended):
                raise Stale from None
            raise

    def _name_recipients(self) -> None:
        """Refusals are kept in passing; raises Denied with the last one when nobody is left."""
        self._dialogue.enter_within_the_same(Stage.RCPT, "RCPT TO")
        last = None
        for recipient in self._recipients:
            last = self._hear(*_RECIPIENT_TAKEN)
            if last is not None:
                self._note_refusal(recipient, last)
        if last is not None and len(self._refused) == len(self._recipients):
            raise Denied(last)

    def _note_refusal(self, recipient: str, reply: Reply) -> None:
        try:
            self._dialogue.expect(reply, *_RECIPIENT_TAKEN)
        except Denied:
            if reply.code == 421:
                raise
            self._refused[recipient] = reply

    def _is_heard_out(self) -> bool:
        """Hears what is still owed to a refused message; whether the server awaits a command then.

        A server may want the text although it took no recipient: it gets an empty one, which goes to
        nobody (RFC 2920 section 3.1). Where it has taken one, the connection is given up instead.
        """
        self._dialogue.attend_to_nobody(HEARING_OUT)
        has_recipients = False
        try:
            while self._session.owed:
                is_data = self._session.owed == 1 and not self._unsaid
                reply = self._session.hear(*_RECIPIENT_TAKEN)
                has_recipients = has_recipients or reply is None
                if reply is not None and reply.code == 421:
                    return False
                if is_data and (reply is None or reply.code < 400):
                    return reply is not None and not has_recipients and self._ends_empty(reply)
        except (Broken, Denied):
            return False
        return True

    def _ends_empty(self, go_ahead: Reply) -> bool:
        if go_ahead.code != 354:
            return False
        self._session.raise_early_answer()
        self._session.send(b".\r\n")
        return self._session.read_reply().code != 421

    def _say_text(self) -> None:
        span = self._dialogue.deadlines.body_of(self._text.size)
        self._dialogue.enter(Stage.DATA, "the message text", span)
        self._demand(354)
        self._dialogue.is_at_command = False
        try:
            for part in self._text.parts():
                self._session.send(part)
        except Broken as ended:
            raise self._last_words() or ended from None
        self._session.raise_early_answer()

    def _last_words(self) -> Denied | None:
        """The refusal a server may have sent before it stopped reading."""
        self._session.deadline = Deadline(self._dialogue.deadlines.quit)
        try:
            reply = self._session.read_reply()
        except Broken:
            return None
        return Denied(reply) if reply.code >= 400 else None

    def _finish(self) -> Outcome:
        self._progress.mark()
        self._is_marked = True
        self._dialogue.resume(Stage.DOT, "the end of the message", self._dialogue.deadlines.dot)
        self._session.send(b".\r\n")
        reply = self._session.read_reply()
        self._dialogue.is_at_command = reply.code != 421
        if 300 <= reply.code < 400:
            text = f"{self._session.peer_name} answered {reply} to the end of the message."
            raise Broken(Cause.PROTOCOL_ERROR, text)
        if reply.code >= 400:
            raise Denied(reply)
        return Accepted(reply, self._refused, queue_id(reply), self._dialogue.facts())


def queue_id(reply: Reply) -> str:
    """The id under which the server says it queued the message, or ""."""
    for pattern in _QUEUE_IDS:
        if found := pattern.search(reply.text):
            return found.group(1)[:255].rstrip(".")
    return ""


def _is_goodbye(ended: Broken | Denied) -> bool:
    if isinstance(ended, Denied):
        return ended.reply.code == 421
    return ended.cause is Cause.CONNECTION_LOST


def _xtext(text: str) -> str:
    """RFC 3461 section 4."""
    return _NO_XTEXT.sub(lambda found: f"+{ord(found.group()):02X}", text)
