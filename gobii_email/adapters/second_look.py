"""A brief further connection after a failed step, which only makes the advice better.

Fetches the certificate that was refused, or finds out whether the server speaks TLS where it was spoken to
in clear, or in clear where TLS was. Goes to the very addresses that the test had vetted.
"""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

from gobii_email.adapters.certificate import Certificate, fetch_unverified
from gobii_email.adapters.dialer import Deadline, ascii_host
from gobii_email.adapters.probe import Missed
from gobii_email.adapters.probe_opening import Target, certificate_missed, is_about_the_certificate
from gobii_email.adapters.wire import Broken, Wire
from gobii_email.domain.advice import advice_for
from gobii_email.domain.findings import Finding, of_wrong_security
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import Security

T = TypeVar("T")

BRIEF = timedelta(seconds=5)
PATIENCE = 0.4
"""The share of a test's time that a greeting may take."""
_GREETINGS = {"banner", "greeting"}
_SILENT = {Cause.TIMEOUT, Cause.CONNECTION_LOST, Cause.PROTOCOL_ERROR}


class Connection(Protocol):
    """What the dialogues of both protocols have in common before the login."""

    @property
    def session(self) -> Wire: ...

    def be_done_within(self, deadline: Deadline) -> None: ...

    def dial(self) -> object: ...

    def encrypt(self) -> object: ...

    def read_greeting(self) -> str: ...

    def come_to_tls(self) -> None:
        """All that is said in clear before a handshake by STARTTLS, once it is dialled."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SecondLook:
    """Looks again at `target`, set to `security`; `connect` makes a connection that is not dialled yet."""

    protocol: str
    target: Target
    security: Security
    connect: Callable[[], Connection]
    expected: tuple[type[Exception], ...]

    def before_long(self, dialogue: Connection) -> str:
        """The greeting of `dialogue`; while a server keeps silent, whether it awaits TLS is looked at."""
        if self.security is Security.SSL:
            return dialogue.read_greeting()
        dialogue.be_done_within(Deadline(BRIEF, within=self.target.deadline))
        try:
            return dialogue.read_greeting()
        except Broken as ended:
            if ended.cause is not Cause.TIMEOUT or self._speaks_tls():
                raise
        finally:
            dialogue.be_done_within(self.target.deadline)
        return dialogue.read_greeting()

    def explain(self, step: str, missed: Missed, cause: Cause) -> Missed:
        """`missed`, which came of `cause` at `step`, with what a further look tells."""
        if is_about_the_certificate(cause):
            return self._with_certificate(missed, cause)
        if step == "tcp" and cause is Cause.TIMEOUT:
            return _with(missed, Finding(advice_for("no-answer"), False, missed.failure.finding.reading))
        is_in_clear = self.security is not Security.SSL
        if step in _GREETINGS and is_in_clear and cause in _SILENT and self._speaks_tls():
            return _with(missed, of_wrong_security(self.protocol, "tls"))
        if step == "tls" and not is_in_clear and self._speaks_in_clear():
            return _with(missed, of_wrong_security(self.protocol, "starttls"))
        return missed

    def _with_certificate(self, missed: Missed, cause: Cause) -> Missed:
        certificate = self._look(self._certificate, None)
        return certificate_missed(missed, cause, ascii_host(self.target.host), certificate)

    def _certificate(self, connection: Connection) -> Certificate | None:
        if self.security is Security.STARTTLS:
            connection.come_to_tls()
        session = connection.session
        assert session.sock is not None
        return fetch_unverified(session.sock, session.peer_name, session.deadline)

    def _speaks_tls(self) -> bool:
        return self._look(_encrypts, False)

    def _speaks_in_clear(self) -> bool:
        return self._look(lambda connection: bool(connection.read_greeting()), False)

    def _look(self, see: Callable[[Connection], T], otherwise: T) -> T:
        """What `see` finds on a dialled connection; `otherwise` where that does not come about."""
        with closing(self.connect()) as connection, suppress(*self.expected):
            connection.be_done_within(Deadline(BRIEF, within=self.target.deadline))
            connection.dial()
            return see(connection)
        return otherwise


def _encrypts(connection: Connection) -> bool:
    """Whether the server speaks TLS, with a certificate that is trusted or not."""
    try:
        connection.encrypt()
    except Broken as ended:
        return is_about_the_certificate(ended.cause)
    return True


def _with(missed: Missed, finding: Finding) -> Missed:
    return replace(missed, failure=replace(missed.failure, finding=finding))
