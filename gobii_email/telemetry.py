"""The one list of spans and their attributes. None of them ever holds a secret or a recipient.

Knows the OpenTelemetry API alone: without an SDK in the process every call here costs next to nothing
and records nothing. Where spans are exported to is decided by the process that starts (`tracing.py`).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from gobii_email.domain.oauth_tokens import Denied, Tokens
from gobii_email.domain.outcomes import Accepted, Lost, Outcome, Refused
from gobii_email.domain.redaction import without, without_addresses, without_credentials
from gobii_email.domain.smtp_replies import safe_text
from gobii_email.ports import ImapServer, LeaseLost, MailboxUnreadable, SmtpServer

logger = logging.getLogger(__name__)

ENQUEUE = "email.enqueue"
SMTP_SEND = "email.smtp.send"
IMAP_POLL = "email.imap.poll"
OAUTH_REFRESH = "oauth.refresh"
FAILURE = "email.failure"
STAGE = "email.stage"


class SendSpan:
    """The span `email.smtp.send` of one attempt."""

    def __init__(self, span: Span, server: SmtpServer, attempt_id: str) -> None:
        self._span = span
        self._server = server
        self._facts = {"attempt_id": attempt_id}

    def ended(self, outcome: Outcome) -> None:
        """Notes its stages and how it ended; a failure becomes the error status and an event, redacted."""
        self._note_stages(outcome)
        match outcome:
            case Accepted(reply=reply):
                logger.info("smtp.send.accepted", extra=self._facts | {"smtp_code": reply.code})
            case Refused(stage=stage, reply=reply):
                facts = {"smtp_code": reply.code, "enhanced_status": reply.enhanced}
                self._fail(str(reply.code), {"stage": str(stage)} | facts, str(reply))
            case Lost(stage=stage, cause=cause, text=text, is_marked=is_marked):
                self._fail(str(cause), {"stage": str(stage), "is_marked": is_marked}, text)

    def _note_stages(self, outcome: Outcome) -> None:
        """An event for each stage, at its end, from the durations that the transport measured."""
        begun = getattr(self._span, "start_time", None)
        if begun is None or not self._span.is_recording():
            return
        for stage, spent in outcome.facts.stage_ms.items():
            begun += spent * 1_000_000
            self._span.add_event(STAGE, {"stage": str(stage), "ms": spent}, timestamp=begun)

    def crashed(self, problem: Exception) -> None:
        """Notes a bug: what was raised, without its variables."""
        error = type(problem).__name__
        text = self._redacted(str(problem))
        mark_failed(self._span, error, text)
        # Not logger.exception: the text may name a recipient, and whoever catches it logs where it was.
        logger.error("smtp.send.crashed", extra=self._facts | {"error": error, "text": text})

    def _fail(self, error: str, facts: dict[str, object], text: str) -> None:
        text = self._redacted(text)
        mark_failed(self._span, error, text)
        logger.warning("smtp.send.failed", extra=self._facts | facts | {"error": error, "text": text})

    def _redacted(self, text: str) -> str:
        return redacted(text, self._server.username)


def mark_failed(span: Span, error: str, text: str) -> None:
    span.set_attribute("error.type", error)
    span.add_event(FAILURE, {"error.type": error, "text": text})
    span.set_status(Status(StatusCode.ERROR, text))


def redacted(text: str, username: str) -> str:
    """Server text without credentials, the login `username`, or anybody's address."""
    text = without_addresses(without_credentials(safe_text(text)))
    return without(text, (username, username.partition("@")[0]))


@contextmanager
def smtp_send(
    server: SmtpServer, *, attempt_id: str, sender: str, to_count: int, cc_count: int, traceparent: str
) -> Iterator[SendSpan]:
    """Opens `email.smtp.send` in the trace that the submission carried."""
    parent, links = _parent(traceparent)
    with _tracer().start_as_current_span(
        SMTP_SEND,
        context=parent,
        links=links,
        kind=SpanKind.CLIENT,
        attributes={
            "smtp.host": server.host,
            "smtp.port": server.port,
            "smtp.security": str(server.security),
            "from": sender,
            "to_count": to_count,
            "cc_count": cc_count,
            "server.address": server.host,
            "server.port": server.port,
        },
        # Foreign exception texts could hold anything; `crashed` says what may be said.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        send = SendSpan(span, server, attempt_id)
        try:
            yield send
        except Exception as problem:
            send.crashed(problem)
            raise


class PollSpan:
    """The span `email.imap.poll` of one visit to a mailbox."""

    def __init__(self, span: Span, server: ImapServer, account_id: str) -> None:
        self._span = span
        self._server = server
        self._facts = {"account_id": account_id}

    def found(self, new_uids: int) -> None:
        self._span.set_attribute("new_uid_count", new_uids)
        if new_uids:
            logger.info("imap.polled", extra=self._facts | {"found": new_uids})

    def failed(self, error: str, text: str) -> None:
        """Notes why the mailbox could not be read, redacted."""
        text = redacted(text, self._server.username)
        mark_failed(self._span, error, text)
        logger.warning("imap.poll_failed", extra=self._facts | {"error": error, "text": text})


@contextmanager
def imap_poll(server: ImapServer, account_id: str) -> Iterator[PollSpan]:
    """Opens `email.imap.poll` around one visit to the mailbox at `server`."""
    with _tracer().start_as_current_span(
        IMAP_POLL,
        kind=SpanKind.CLIENT,
        attributes={
            "imap.host": server.host,
            "imap.port": server.port,
            "imap.security": str(server.security),
            "imap.folder": server.folder,
            "server.address": server.host,
            "server.port": server.port,
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        poll = PollSpan(span, server, account_id)
        try:
            yield poll
        except MailboxUnreadable as problem:
            poll.failed(problem.failure.error, problem.failure.text)
            raise
        except LeaseLost:
            raise
        except Exception as problem:
            poll.failed(type(problem).__name__, str(problem))
            raise


class RefreshSpan:
    """The span `oauth.refresh` of one renewal of an account's access token."""

    def __init__(self, span: Span, facts: dict[str, object]) -> None:
        self._span = span
        self._facts = facts

    def ended(self, answer: Tokens | Denied) -> None:
        """Notes whether there are new tokens, and by the provider's short code why not."""
        if isinstance(answer, Tokens):
            logger.info("oauth.refreshed", extra=self._facts)
            return
        self._span.set_attribute("error.type", answer.error)
        self._span.set_status(Status(StatusCode.ERROR, answer.text))
        logger.warning(
            "oauth.refresh_failed", extra=self._facts | {"error": answer.error, "why": str(answer.reason)}
        )


@contextmanager
def oauth_refresh(provider: str, account_id: str) -> Iterator[RefreshSpan]:
    """Opens `oauth.refresh` around the request for new tokens."""
    with _tracer().start_as_current_span(
        OAUTH_REFRESH,
        kind=SpanKind.CLIENT,
        attributes={"oauth.provider": provider},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield RefreshSpan(span, {"provider": provider, "account_id": account_id})


@contextmanager
def enqueue(count: int) -> Iterator[None]:
    """Opens `email.enqueue` around a submission of `count` messages; the send joins its trace."""
    with _tracer().start_as_current_span(
        ENQUEUE,
        kind=SpanKind.PRODUCER,
        attributes={"messaging.system": "celery", "messaging.batch.message_count": count},
        record_exception=False,
        set_status_on_exception=False,
    ):
        yield


def trace_headers() -> dict[str, str]:
    """The present trace in W3C form, for a message to carry; empty when there is none."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier


def _parent(traceparent: str) -> tuple[contexts.Context, list[Link]]:
    """Where a send belongs: below the present span when that is of the submission's trace already.

    Otherwise a dispatcher handed the attempt out: the send goes below the submission, linked to here.
    """
    here = contexts.get_current()
    submitted = extract({"traceparent": traceparent}, context=here) if traceparent else here
    now, then = (trace.get_current_span(context).get_span_context() for context in (here, submitted))
    if now.trace_id == then.trace_id:
        return here, []
    return submitted, [Link(now)] if now.is_valid else []


def _tracer() -> trace.Tracer:
    return trace.get_tracer("gobii_email")
