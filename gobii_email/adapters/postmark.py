"""Hands messages over to Postmark, through Anymail's own backend and its reading of the answers.

Knows the frozen mail's way into Postmark's JSON and what its answers are as outcomes; what they mean for
the message is decided in classification. Rules from postmarkapp.com/developer/api/overview (error codes).
"""

import contextlib
import logging
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email import message_from_string, policy
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

import requests
from anymail.backends.postmark import EmailBackend, PostmarkPayload
from anymail.exceptions import AnymailError
from django.core.mail import EmailMultiAlternatives
from requests.adapters import HTTPAdapter

from gobii_email.adapters.https_session import HttpsSession
from gobii_email.domain.addresses import normalise
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Reply, Stage, reply_from, safe_text
from gobii_email.ports import Envelope, LeaseLost, NotNow, Progress

logger = logging.getLogger(__name__)

TAG = "persistent-agent"

# What Postmark is told in fields of its own, or writes itself.
_OWN_FIELDS = frozenset(["from", "to", "cc", "bcc", "reply-to", "subject", "date", "mime-version"])
_SENDER_ERRORS = frozenset([400, 401])  # the sender's signature is missing or not confirmed
_TEMPORARY_ERRORS = frozenset([100, 405])  # maintenance; the account's credit is used up
_TEXT_OF_LOSS = {
    Cause.TIMEOUT: "Postmark did not answer in time.",
    Cause.DNS_FAILED: "The address of Postmark's API could not be resolved.",
    Cause.TLS_FAILED: "No secure connection to Postmark's API could be made.",
    Cause.CONNECTION_REFUSED: "Postmark's API could not be reached.",
    Cause.CONNECTION_LOST: "The connection to Postmark was lost before its answer came.",
    Cause.API_ERROR: "Postmark's API gave no usable answer.",
}


class PostmarkTransport:
    """A `ports.MailTransport`. `total` bounds one exchange, besides `connect` for each address dialled.

    The server token leaves it in one request header only; no text of an outcome or a log holds it.
    """

    def __init__(
        self,
        *,
        token: Secret,
        api_url: str,
        connect: timedelta = timedelta(seconds=15),
        total: timedelta = timedelta(seconds=120),
    ) -> None:
        self._token, self._api_url = token, api_url
        self._connect, self._total = connect, total

    def send(self, envelope: Envelope, message: bytes, progress: Progress) -> Outcome:
        """Hands over the frozen `message` for the recipients of `envelope`, and for nobody else."""
        if not self._token.reveal().isascii():
            return Refused(
                Stage.AUTH, Reply(535, "5.7.8", "POSTMARK_SERVER_TOKEN has characters no token has")
            )
        mail = _mail(message, envelope)
        line = _Line(progress, self._total)
        try:
            progress.reached(Stage.CONNECT)
            self._backend(line).send_messages([mail])
        except NotNow as switch:
            return Lost(Stage.CONNECT, Cause.SUSPENDED, str(switch))
        except LeaseLost:
            return Lost(Stage.DATA, Cause.LEASE_LOST, "The attempt was taken over; nothing was sent.")
        except AnymailError as problem:
            if problem.response is None:
                return _loss(problem, line)
            return self._answer(problem.response, {}, envelope)
        finally:
            line.close()
        status = mail.anymail_status  # type: ignore[attr-defined]
        found = {normalise(address): str(one.status) for address, one in status.recipients.items()}
        return self._answer(status.esp_response, found, envelope)

    def _backend(self, line: "_Line") -> "_Backend":
        return _Backend(
            line,
            server_token=self._token.reveal(),
            api_url=self._api_url,
            timeout=(self._connect.total_seconds(), self._total.total_seconds()),
            ignore_recipient_status=True,
            debug_api_requests=False,
            use_bulk_api=False,
        )

    def _answer(
        self, response: requests.Response, statuses: Mapping[str, str], envelope: Envelope
    ) -> Outcome:
        """Postmark's answer as an outcome; `statuses` are Anymail's words by lower-cased address."""
        said = _said(response)
        error = said.get("ErrorCode", 0)
        text = self._safe(f"Postmark: {said.get('Message') or response.reason or response.status_code}")
        if error:
            text = text.replace("Postmark:", f"Postmark error {error}:", 1)
        match 200 if response.ok and not response.is_redirect else response.status_code:
            case 200 if not error and said.get("MessageID"):
                return _accepted(said, text, statuses, envelope)
            case 200 | 422 if error:
                return _refused(int(error), text, statuses, envelope)
            case 200 | 502 | 504:  # the answer of the server itself is missing: it may have the mail
                return Lost(Stage.DOT, Cause.API_ERROR, _TEXT_OF_LOSS[Cause.API_ERROR], is_marked=True)
            case 401 | 403:
                logger.error("postmark.token_refused", extra={"http_status": response.status_code})
                return Refused(Stage.AUTH, Reply(535, "5.7.8", text))
            case 413 | 422:
                return Refused(Stage.DOT, Reply(552 if response.status_code == 413 else 554, "", text))
        logger.warning("postmark.unavailable", extra={"http_status": response.status_code})
        return Refused(Stage.DOT, Reply(451, "", f"{text} (HTTP {response.status_code})"))

    def _safe(self, text: str) -> str:
        token = self._token.reveal()
        return safe_text(text.replace(token, "********") if token else text)


def _accepted(
    said: Mapping[str, Any], text: str, statuses: Mapping[str, str], envelope: Envelope
) -> Accepted | Refused:
    refused = _singled_out(statuses, envelope, text)
    if len(refused) == len(envelope.recipients):
        return Refused(Stage.RCPT, Reply(550, "", text), refused)
    return Accepted(Reply(250, "2.0.0", text), refused, provider_message_id=str(said["MessageID"]))


def _refused(error: int, text: str, statuses: Mapping[str, str], envelope: Envelope) -> Refused:
    """Nothing was sent. Where single recipients are to blame, the others may be tried without them."""
    refused = _singled_out(statuses, envelope, text)
    if refused and len(refused) < len(envelope.recipients):
        return Refused(Stage.DOT, Reply(451, "", f"Not sent because of other recipients. {text}"), refused)
    if refused or (statuses and error == 406):
        return Refused(Stage.RCPT, Reply(550, "", text), refused)
    if error in _TEMPORARY_ERRORS:
        return Refused(Stage.DOT, Reply(451, "", text))
    return Refused(Stage.MAIL if error in _SENDER_ERRORS else Stage.DOT, Reply(554, "", text))


def _singled_out(statuses: Mapping[str, str], envelope: Envelope, text: str) -> dict[str, Reply]:
    bad = {address for address, status in statuses.items() if status in {"rejected", "invalid", "failed"}}
    return {address: reply_from(550, text) for address in envelope.recipients if normalise(address) in bad}


def _said(response: requests.Response) -> dict[str, Any]:
    """The answer's JSON object; {} when it is none."""
    try:
        said = response.json()
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) and isinstance(said.get("ErrorCode", 0), int) else {}


def _loss(problem: AnymailError, line: "_Line") -> Outcome:
    """What it means that no answer came: provably unsent before the mark, in doubt after it."""
    if line.is_marked:
        is_late = line.is_cut or isinstance(problem, requests.Timeout)
        cause = Cause.TIMEOUT if is_late else Cause.CONNECTION_LOST
        return Lost(Stage.DOT, cause, _TEXT_OF_LOSS[cause], is_marked=True)
    if not isinstance(problem, requests.RequestException):
        return Refused(Stage.DATA, Reply(554, "", safe_text(f"Anymail cannot write this mail: {problem}")))
    cause = Cause.API_ERROR
    match problem:
        case requests.Timeout():
            cause = Cause.TIMEOUT
        case requests.exceptions.SSLError():
            cause = Cause.TLS_FAILED
        case requests.ConnectionError() if "NameResolutionError" in repr(problem.__cause__):
            cause = Cause.DNS_FAILED
        case requests.ConnectionError():
            cause = Cause.TIMEOUT if line.is_cut else Cause.CONNECTION_REFUSED
    return Lost(Stage.CONNECT, cause, _TEXT_OF_LOSS[cause])


class _Line:
    """One exchange: marks it just before its first byte, and cuts it off when its time is over."""

    def __init__(self, progress: Progress, total: timedelta) -> None:
        self._progress, self._total = progress, total
        self._twin: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self.is_marked = self.is_cut = False

    def watch(self, connected: socket.socket) -> None:
        """Starts the clock. The twin stays usable when TLS takes the socket itself over."""
        self.close()
        self._twin = connected.dup()
        self._timer = threading.Timer(self._total.total_seconds(), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def begin(self) -> None:
        if not self.is_marked:
            self._progress.mark()
            self.is_marked = True

    def _cut(self) -> None:
        self.is_cut = True
        with contextlib.suppress(OSError):
            if self._twin is not None:
                self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._twin is not None:
            self._twin.close()


class _Adapter(HTTPAdapter):
    """Requests over connections that tell the line when they are made, with or without a proxy."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **named: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **named)
        pool.ConnectionCls = _watched(pool.ConnectionCls, self._line)
        return pool


def _watched(plain: Any, line: _Line) -> type[Any]:
    class Watched(plain):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            connected: socket.socket = super()._new_conn()
            line.watch(connected)
            return connected

        def connect(self) -> None:
            super().connect()
            line.begin()

    return Watched


class _Session(HttpsSession):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(line))


class _Backend(EmailBackend):  # type: ignore[misc]
    """Anymail's backend on one line, without its signals: the mail is frozen and has its own events."""

    def __init__(self, line: _Line, **named: Any) -> None:
        super().__init__(**named)
        self._line = line

    def create_session(self) -> requests.Session:
        return _Session(self._line)

    def build_message_payload(self, message: object, defaults: object) -> PostmarkPayload:
        return _Payload(message, defaults, self)

    def run_pre_send(self, message: object) -> bool:
        return True

    def run_post_send(self, message: object) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _File:
    """An attached file under the names that Anymail's payload reads."""

    name: str
    content_type: str
    b64content: str
    inline: bool
    cid: str


class _Payload(PostmarkPayload):  # type: ignore[misc]
    """Anymail's payload with files as they are: its own reading fails on text in another character set."""

    def prepped_attachments(self, attachments: Sequence[_File]) -> Sequence[_File]:
        return attachments


def _mail(message: bytes, envelope: Envelope) -> EmailMultiAlternatives:
    """The frozen mail as Anymail takes it; who is in the envelope and in neither To nor Cc goes in Bcc."""
    frozen = message_from_string(message.decode("utf-8"), policy=policy.SMTP)
    assert isinstance(frozen, EmailMessage)
    left = {normalise(address): address for address in envelope.recipients}
    to, cc = ([left.pop(found) for found in _named(frozen, name) if found in left] for name in ("To", "Cc"))
    text, html, files = _parts(frozen)
    mail = EmailMultiAlternatives(
        subject=str(frozen["Subject"] or ""),
        body=text,
        from_email=str(frozen["From"]),
        to=to,
        cc=cc,
        bcc=list(left.values()),
        reply_to=[str(frozen["Reply-To"])] if frozen["Reply-To"] else None,
        headers=dict(_headers(frozen)),
    )
    if html:
        mail.attach_alternative(html, "text/html")
    mail.attachments = files
    mail.tags, mail.metadata = [TAG], {"attempt_id": envelope.envelope_id}  # type: ignore[attr-defined]
    return mail


def _named(frozen: EmailMessage, name: str) -> list[str]:
    return [normalise(address) for _, address in getaddresses([str(frozen[name] or "")])]


def _headers(frozen: EmailMessage) -> Iterator[tuple[str, str]]:
    """The header fields beside Postmark's own ones; it keeps our Message-ID when told so."""
    for name, value in frozen.items():
        if name.lower() not in _OWN_FIELDS and not name.lower().startswith("content-"):
            yield name, str(value)
    yield "X-PM-KeepID", "true"


def _parts(frozen: EmailMessage) -> tuple[str, str, list[_File]]:
    """Text, HTML ("" when there is none) and files of a mail as `domain.composition` makes them."""
    bodies: dict[str, str] = {}
    files = []
    for part in frozen.walk():
        kind = part.get_content_type()
        if part.is_multipart():
            continue
        if (
            part.get_content_disposition() is None
            and kind in {"text/plain", "text/html"}
            and kind not in bodies
        ):
            bodies[kind] = part.get_content().replace("\r\n", "\n")
        else:
            files.append(_file(part))
    return bodies.get("text/plain", ""), bodies.get("text/html", ""), files


def _file(part: EmailMessage) -> _File:
    content = part.get_payload(decode=True)
    return _File(
        name=part.get_filename() or "attachment",
        content_type=part.get_content_type(),
        b64content=b64encode(content if isinstance(content, bytes) else b"").decode("ascii"),
        inline=part.get_content_disposition() == "inline",
        cid=str(part["Content-ID"] or "").strip().strip("<>"),
    )
