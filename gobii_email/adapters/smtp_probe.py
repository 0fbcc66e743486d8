"""A test of a submission server: all steps of a mail short of the mail.

Walks the very dialogue that submissions use, so that a test cannot pass where a mail would fail.
Which account is tested, and who may see the result, is decided by the services.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from gobii_email.adapters.dialer import DialFailed, DialPolicy
from gobii_email.adapters.probe import (
    Act,
    Found,
    Missed,
    OnLine,
    OnStep,
    greeted,
    walk,
    warned,
)
from gobii_email.adapters.probe_opening import Target, encrypted, opening
from gobii_email.adapters.second_look import PATIENCE, SecondLook
from gobii_email.adapters.smtp_dialogue import Deadlines, Dialogue
from gobii_email.adapters.smtp_session import Denied, SmtpSession
from gobii_email.adapters.smtp_transcript import RecordedSession
from gobii_email.adapters.wire import Broken
from gobii_email.domain.diagnosis import StepStatus
from gobii_email.domain.findings import (
    SMTP,
    is_about_the_sender,
    of_loss,
    of_reply,
)
from gobii_email.ports import Auth, Probe, ProbeFailure, Security, SmtpServer

_UNSPOKEN = (Broken, Denied, DialFailed)
# What an answer to EHLO may lose or gain with encryption.
_OF_THE_SIGN_IN = {"STARTTLS", "AUTH"}


class SmtpProbe:
    """One test of `server`; `on_line` hears what is said, redacted."""

    def __init__(
        self,
        server: SmtpServer,
        policy: DialPolicy,
        deadlines: Deadlines,
        local_hostname: str,
        on_line: OnLine | None = None,
    ) -> None:
        self._server = server
        self._local_hostname = local_hostname
        self._deadlines = replace(deadlines, banner=min(deadlines.banner, deadlines.probe * PATIENCE))
        self._target = Target.of(server, policy, deadlines)
        self._dialogue = self._connection(on_line)
        self._second_look = SecondLook(SMTP, self._target, server.security, self._connection, _UNSPOKEN)
        self._offers: dict[str, str] = {}

    def walk(self, sender: str, recipient: str | None, until: str, on_step: OnStep) -> Probe:
        """The steps, up to the first failure or `until`; `recipient` adds a RCPT TO."""
        with closing(self._dialogue):
            plan = list(self._plan(sender, recipient))
            steps, failure = walk(plan, self._explain, _UNSPOKEN, until=until, on_step=on_step)
            return Probe(steps, failure, self._dialogue.facts())

    def _plan(self, sender: str, recipient: str | None) -> Iterator[tuple[str, Act]]:
        security = self._server.security
        yield from opening(self._target, security, self._dialogue)
        yield "banner", self._read_greeting
        yield "ehlo", self._introduce
        if security is Security.STARTTLS:
            yield "starttls", lambda: _said(self._dialogue.ask_for_tls())
            yield "tls", lambda: encrypted(self._dialogue)
            yield "ehlo_again", self._introduce_again
        yield "auth", self._log_in
        yield "mail", lambda: _said(self._dialogue.name_sender(sender))
        if recipient is not None:
            yield "rcpt", lambda: self._name_recipient(recipient)

    def _connection(self, on_line: OnLine | None = None) -> Dialogue:
        make: Callable[..., SmtpSession] = SmtpSession
        if on_line is not None:
            make = RecordedSession.heard_by(on_line)
        return Dialogue(
            self._server,
            self._target.policy,
            self._deadlines,
            self._local_hostname,
            self._target.deadline,
            self._target.known,
            make_session=make,
        )

    # Steps

    def _read_greeting(self) -> Found:
        return greeted(lambda: self._second_look.before_long(self._dialogue))

    def _introduce(self) -> Found:
        said = self._dialogue.introduce()
        self._offers = self._offered()
        return Found(_offer_text(self._offers), {"extensions": _lines(self._offers)}, raw=said)

    def _introduce_again(self) -> Found:
        before = self._offers
        found = self._introduce()
        lost = sorted(before.keys() - self._offers.keys() - _OF_THE_SIGN_IN)
        gained = sorted(self._offers.keys() - before.keys() - _OF_THE_SIGN_IN)
        facts = dict(found.facts) | {"only_before": lost, "only_after": gained}
        if not (lost or gained):
            return replace(found, facts=facts)
        text = f"Only in clear: {_names(lost)}; only encrypted: {_names(gained)}."
        return replace(warned("offers-differ", text), facts=facts, raw=found.raw)

    def _offered(self) -> dict[str, str]:
        return {name.upper(): value for name, value in self._dialogue.session.esmtp_features.items()}

    def _log_in(self) -> Found:
        if self._server.auth is Auth.NONE:
            text = "The account is set to send without a login."
            return Found(text, status=StepStatus.SKIPPED)
        said = self._dialogue.log_in()
        return Found(f"Signed in with {self._dialogue.mechanism}.", self._login_facts(), raw=said)

    def _login_facts(self) -> dict[str, object]:
        return {"mechanism": self._dialogue.mechanism, "offered": self._dialogue.offered_logins}

    def _name_recipient(self, recipient: str) -> Found:
        said = self._dialogue.name_recipient(recipient)
        with suppress(*_UNSPOKEN):  # a server that fumbles its farewells still takes mail
            self._dialogue.ask("RSET")
        return _said(said)

    # What went wrong

    def _explain(self, step: str, ended: Exception) -> Missed | Found:
        if isinstance(ended, Denied):
            return self._denied(step, ended)
        assert isinstance(ended, Broken | DialFailed)
        lost = self._dialogue.lost(ended.cause, ended.text)
        if step == "rcpt":
            # The sender was accepted; whether this one address takes mail does not keep it from sending.
            return warned("own-address-refused", ended.text)
        missed = Missed(ProbeFailure(ended.text, of_loss(SMTP, lost), lost.stage, lost=lost))
        if step == "auth":
            return replace(missed, facts=self._login_facts())
        return self._second_look.explain(step, missed, lost.cause)

    def _denied(self, step: str, ended: Denied) -> Missed | Found:
        stage, reply = self._dialogue.stage, ended.reply
        finding = of_reply(self._server.host, stage, reply, by_token=self._server.auth is Auth.OAUTH2)
        assert finding.reading is not None
        if step == "rcpt" and not is_about_the_sender(reply, finding.reading):
            return replace(warned("own-address-refused", str(reply)), raw=str(reply))
        text = f"The server answered {reply} (at {stage})."
        facts = self._login_facts() if step == "auth" else {}
        raw = "\n".join(filter(None, (str(reply), self._dialogue.challenge if step == "auth" else "")))
        return Missed(ProbeFailure(text, finding, stage, reply=reply), facts, raw)


def _said(text: str) -> Found:
    return Found(text, raw=text)


def _lines(offers: dict[str, str]) -> list[str]:
    return [f"{name} {value}".strip() for name, value in sorted(offers.items())]


def _names(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"


def _offer_text(offers: dict[str, str]) -> str:
    return f"Offers {', '.join(sorted(offers))}." if offers else "Offers no extensions."
