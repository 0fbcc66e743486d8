"""How one attempt to hand a message over can end, as values.

A transport answers with exactly one of `Accepted`, `Refused`, `Lost`; exceptions from a transport
mean bugs. What the ending means for the message is decided in classification.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gobii_email.domain.smtp_replies import Reply, Stage


class Cause(StrEnum):
    """Why there is no reply of the server to go by. Stored as the attempt's `error_code`."""

    ADDRESS_NOT_ALLOWED = "address_not_allowed"  # the host resolves to a network we do not dial
    PORT_NOT_ALLOWED = "port_not_allowed"
    HOST_UNKNOWN = "host_unknown"  # no such name, or no address
    DNS_FAILED = "dns_failed"  # the resolver did not answer
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_LOST = "connection_lost"
    TIMEOUT = "timeout"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_WRONG_NAME = "certificate_wrong_name"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    TLS_FAILED = "tls_failed"
    STARTTLS_NOT_OFFERED = "starttls_not_offered"
    STARTTLS_INJECTION = "starttls_injection"  # bytes followed the 220 in clear
    AUTH_NOT_OFFERED = "auth_not_offered"  # the account's mechanism is not in the EHLO answer
    AUTH_WITHOUT_TLS = "auth_without_tls"
    PROTOCOL_ERROR = "protocol_error"  # what came back is not SMTP
    REPLY_TOO_LARGE = "reply_too_large"
    SMTPUTF8_REQUIRED = "smtputf8_required"
    MESSAGE_TOO_LARGE = "message_too_large"  # larger than the server's SIZE
    SECRET_UNREADABLE = "secret_unreadable"  # noqa: S105
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - the provider issues no access token just now
    LEASE_LOST = "lease_lost"  # the durable mark could not be committed; the dot was not sent
    SUSPENDED = "suspended"  # an operator switched sending off before the transaction began
    API_ERROR = "api_error"  # an HTTP provider answered something unusable
    WORKER_LOST = "worker_lost"  # said by rescue, never by a transport


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is worth keeping of a dialogue besides its outcome.

    `stage_ms` maps a stage to its duration in milliseconds. `tls` is e.g. "TLSv1.3", "" in clear.
    `peer_address` is the IP address dialled. `extensions` are the EHLO keywords that counted.
    """

    stage_ms: Mapping[str, int] = field(default_factory=dict)
    tls: str = ""
    peer_address: str = ""
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server took the message for every recipient not in `refused`.

    `provider_message_id` is the server's queue id or the provider's id, "" when it names none.
    """

    reply: Reply
    refused: Mapping[str, Reply] = field(default_factory=dict)
    provider_message_id: str = ""
    facts: SessionFacts = field(default_factory=SessionFacts)


@dataclass(frozen=True, slots=True)
class Refused:
    """The server said no at `stage`; `refused` has the answers for recipients refused before that.

    At stage RCPT every recipient was refused: `refused` has them all and `reply` is the last one.
    """

    stage: Stage
    reply: Reply
    refused: Mapping[str, Reply] = field(default_factory=dict)
    facts: SessionFacts = field(default_factory=SessionFacts)


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer to go by: `stage` is the step that was under way, `cause` why, `text` a sentence.

    `is_marked` says that the durable mark was committed, so the server may have the message.
    `refused` has the answers for recipients refused at RCPT before the loss.
    """

    stage: Stage
    cause: Cause
    text: str
    is_marked: bool = False
    refused: Mapping[str, Reply] = field(default_factory=dict)
    facts: SessionFacts = field(default_factory=SessionFacts)


Outcome = Accepted | Refused | Lost
