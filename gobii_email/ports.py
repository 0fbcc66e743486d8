"""What the services need from the outside, as protocols.

Adapters implement these; `wiring` chooses which. Values in, values out: an adapter translates
foreign exceptions itself and never lets one through that could hold a secret.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from gobii_email.domain.diagnosis import Step
from gobii_email.domain.evidence import Looked
from gobii_email.domain.findings import UNTOLD, Finding
from gobii_email.domain.mail_services import ServiceRecord
from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.domain.oauth_tokens import Denied, OAuthService, Tokens
from gobii_email.domain.outcomes import Lost, Outcome, SessionFacts
from gobii_email.domain.quotas import Window
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Reply, Stage

if TYPE_CHECKING:
    from gobii_email.domain.mail_reading import MailReading


class Security(StrEnum):
    SSL = "ssl"
    STARTTLS = "starttls"
    NONE = "none"


class Auth(StrEnum):
    PLAIN = "plain"
    LOGIN = "login"
    NONE = "none"
    OAUTH2 = "oauth2"


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where and how to sign in to a server: one account's settings, with its secret still opaque.

    `secret` is the password, or the access token when `auth` is OAUTH2; None when `auth` is NONE.
    """

    host: str
    port: int
    security: Security
    auth: Auth
    username: str = ""
    secret: Secret | None = None


@dataclass(frozen=True, slots=True)
class SmtpServer(MailServer):
    """Where mail is submitted."""


@dataclass(frozen=True, slots=True)
class ImapServer(MailServer):
    """Where mail is read, and from which folder."""

    folder: str = "INBOX"


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who it is from and who it is for, as the server is told. Addresses are validated, domains A-labels.

    `envelope_id` goes out as ENVID where DSN is offered.
    """

    sender: str
    recipients: Sequence[str]
    envelope_id: str


class Progress(Protocol):
    """What a transport tells its caller while it works. Each call may commit and may raise LeaseLost."""

    def reached(self, stage: Stage) -> None:
        """The dialogue enters `stage`; called before its first byte. May raise NotNow as well."""

    def mark(self) -> None:
        """Commits that the message may from now on be with the server. Raises LeaseLost if it cannot."""


class LeaseLost(Exception):
    """Somebody else has taken this attempt over, or the mark could not be written: send no dot."""


class NotNow(Exception):
    """Sending was switched off a moment ago: begin no transaction. The text is a sentence."""


class AccountTransport(Protocol):
    """Hands serialised messages to accounts' own servers; never raises for what a server does."""

    def open(self, server: SmtpServer, reuse: "Reuse") -> "Sender":
        """A sender for one account's turn. Dials nothing yet, so it cannot fail."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How connections may carry more than one message.

    `key` names everything that must be equal for two senders to share a connection: the account, its
    credential's version, host, port, security. `messages` (>= 1) is the most one connection carries, `idle`
    how long it may wait for the next sender (zero: it is closed with its sender), `connections` how many of
    them may wait.
    """

    key: str = ""
    messages: int = 1
    idle: timedelta = timedelta(0)
    connections: int = 1


class Sender(Protocol):
    """One account's connection while its turn lasts; opened when first needed. Belongs to one thread."""

    def send(self, envelope: Envelope, header: bytes, message: bytes, progress: "Progress") -> Outcome:
        """Hands over `header` + `message`, which is CRLF text; dials where no connection is at hand.

        `progress.reached(CONNECT)` is called only where it dials. Raises ValueError for what is no message
        or no envelope, before anything is dialled: those are mistakes of ours.
        """

    def close(self) -> None:
        """Ends the turn: the connection waits for the next one, or is closed. Never raises, never waits."""


class MailTransport(Protocol):
    """Hands one serialised message over where no account is involved; never raises for what a server does."""

    def send(self, envelope: Envelope, message: bytes, progress: Progress) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Probe:
    """A connection test without a message: the steps, and the first failure if there was one."""

    steps: Sequence[Step]
    failure: "ProbeFailure | None" = None
    facts: SessionFacts = field(default_factory=SessionFacts)

    @property
    def is_ok(self) -> bool:
        return self.failure is None


@dataclass(frozen=True, slots=True)
class ProbeFailure:
    """Where a test stopped and why: `text` is a sentence, `finding` what to do about it.

    With SMTP `stage` is where, and there is the server's `reply` or the `lost` connection; with IMAP
    there is the `lost` connection or neither.
    """

    text: str
    finding: Finding
    stage: Stage | None = None
    reply: Reply | None = None
    lost: Lost | None = None

    @property
    def is_untold(self) -> bool:
        """Whether only that it failed may be told, by the same words and times for every reason."""
        return self.lost is not None and self.lost.cause in UNTOLD


@dataclass(frozen=True, slots=True)
class Hint:
    """That there is work: an attempt that is due, and the lane (its sender's endpoint id) it waits in."""

    attempt_id: str
    lane: str = ""


SEND_QUEUE, CONTROL_QUEUE, INBOUND_QUEUE = "email.send", "email.control", "email.inbound"


@dataclass(frozen=True, slots=True)
class Call:
    """A task to be run by name, in `queue`, about the row with the id `subject`: ids alone go through it."""

    task: str
    subject: str
    queue: str


class Doorbell(Protocol):
    """Wakes workers. Never raises, blocks no longer than its breaker allows; a lost ring loses nothing."""

    def ring(self, hints: Sequence[Hint], *, once: bool = False) -> bool:
        """Whether the broker took the hints. `once` leaves out lanes whose last hint nobody has taken yet."""

    def call(self, calls: Sequence[Call]) -> bool:
        """Whether the broker took the calls."""

    def waiting(self, queue: str) -> int | None:
        """How many calls wait in `queue`; None where the broker cannot tell."""


@dataclass(frozen=True, slots=True)
class LimitScope:
    """What is limited together: an account, or the host or sender's domain above it.

    `key` is unique, such as `account:<id>`, `host:smtp.example.com:587`, `domain:example.com`. `owner` stands
    in sentences: "the account's". `connections` is how many lanes may work at once, None for any number.
    """

    key: str
    owner: str
    windows: tuple[Window, ...] = ()
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: `until` is the exact time of the next slot, `reason` a sentence without it.

    `is_full` says that all connections are in use: then `until` is when the first lease runs out, and whoever
    leaves before that learns that somebody asked.
    """

    until: datetime
    reason: str
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Entered:
    """In: there is `room` (>= 1) for so many recipients now, none of it reserved yet.

    `lanes` are at work in the first scope, this one included.
    """

    room: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Redis knows nothing of these scopes: restore them from the database, then ask again."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """The first `granted` of the costs asked for are reserved; `wait` says when the next one fits, if any."""

    granted: int
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """`cost` recipients that a server took, or may have taken, `ago`."""

    cost: int
    ago: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is counted of one scope now: recipients by window name, those reserved included."""

    used: dict[str, int]
    reserved: int
    lanes: int


class LimiterUnavailable(Exception):
    """Redis does not answer. Nothing may be sent faster than allowed, so nothing is sent."""


class Limiter(Protocol):
    """Rates and connections of accounts, shared by all workers. Each call is one round trip.

    A lane is a worker's turn with one account: it enters, has costs admitted, settles what became of them,
    and leaves. `scopes` are the same in all calls of a lane, its account first. Costs are recipients. What is
    reserved counts in every window until it is settled, and from then as long as the window's span. A lane
    that is not renewed within `lease` is gone: its connections are free, what it had reserved counts as spent
    at that moment. All calls raise LimiterUnavailable.
    """

    def enter(
        self, lane: str, scopes: Sequence[LimitScope], *, lease: timedelta
    ) -> Entered | Wait | Forgotten: ...

    def room(self, lane: str, scopes: Sequence[LimitScope]) -> Entered | Wait | Forgotten:
        """As `enter`, for a lane that is in already; a Wait leaves it in."""

    def admit(self, lane: str, scopes: Sequence[LimitScope], costs: Sequence[int]) -> Admission | Forgotten:
        """Reserves for as many of `costs`, in order, as all windows have room for."""

    def settle(
        self, lane: str, scopes: Sequence[LimitScope], *, spent: Sequence[Spent], returned: int
    ) -> None:
        """Turns reservations into `spent`, and gives `returned` of them back: no server took those."""

    def leave(self, lane: str, scopes: Sequence[LimitScope]) -> bool:
        """Gives the connections back, and all that is still reserved; whether anybody asked in vain."""

    def renew(self, lanes: Sequence[tuple[str, Sequence[LimitScope]]], *, lease: timedelta) -> None: ...

    def restore(
        self, scope: LimitScope, spent: Sequence[Spent], *, lanes: Sequence[tuple[str, timedelta]] = ()
    ) -> bool:
        """Writes down what the database knows of `scope`; False when somebody else was faster.

        `lanes` are those at work somewhere, each with the time left of its lease.
        """

    def usage(self, scope: LimitScope) -> Usage | None:
        """What is counted now; None when nothing is known."""

    def slots(self, scopes: Sequence[LimitScope], cost: int) -> datetime | None:
        """When `cost` further recipients have all been admitted, if nobody else sends; None when never."""


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """One sign-in of the owner of `address`: `state` and `verifier` are ours alone until it is over."""

    address: str
    redirect_uri: str
    state: Secret
    nonce: str
    verifier: Secret


class TokenIssuer(Protocol):
    """A provider of sign-ins with OAuth 2.0. Each call but the first is bounded in time and size."""

    @property
    def service(self) -> OAuthService: ...

    @property
    def revokes(self) -> bool:
        """Whether the service has an endpoint to revoke tokens at."""

    def authorize_url(self, request: SignInRequest) -> str:
        """Where to send the person; asks nobody."""

    def exchange(self, code: Secret, request: SignInRequest) -> Tokens | Denied: ...

    def refresh(self, refresh_token: Secret, scope: str) -> Tokens | Denied:
        """New tokens; `scope` is what was granted, "" when that is not known."""

    def claims(self, id_token: Secret, nonce: str, access_token: Secret) -> Mapping[str, Any]:
        """What a verified id token says of who signed in. Raises UnverifiedIdentity."""

    def revoke(self, token: Secret) -> bool:
        """Whether the service confirmed that the token and its grant are void. Never raises."""


class UnverifiedIdentity(Exception):
    """An id token that proves nothing: `error` is a short word for logs."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True)
class MailHead:
    """What a mailbox tells of one mail before it is fetched.

    `size` is in bytes and as the server says; `header` is the header block, cut off where it is very long;
    `internal_at` is when the server got it, None when it does not tell.
    """

    uid: int
    size: int
    internal_at: datetime | None
    header: bytes


class OpenFolder(Protocol):
    """One folder of a mailbox, opened for reading: nothing is marked, nothing deleted.

    UIDs belong to `uid_validity`, which is 0 where the server names none; `uid_next` is None where it does
    not tell. All calls raise MailboxUnreadable.
    """

    messages: int
    uid_validity: int
    uid_next: int | None

    def uids(self, first: int, last: int | None, since: date | None = None) -> Sequence[int]:
        """The UIDs there are from `first` to `last` (None: to the end), in order.

        With `since` those alone that came on that day or later, by the server's calendar.
        """

    def heads(self, uids: Sequence[int]) -> Mapping[int, MailHead]:
        """By UID; those that are gone meanwhile are left out."""

    def body(self, uid: int, size: int, most: int) -> bytes | None:
        """The whole mail, `size` by its head and `most` bytes at most; None when it is gone meanwhile."""


class MailboxUnreadable(Exception):
    """A mailbox could not be read. `is_over`: the connection is lost, or never was there."""

    def __init__(self, failure: MailboxFailure, *, is_over: bool) -> None:
        super().__init__(failure.text)
        self.failure = failure
        self.is_over = is_over


class DomainInquiry(Protocol):
    """Questions to DNS about one domain, within one deadline that began when it was made. Never raises."""

    is_complete: bool
    """Whether every question so far got an answer."""

    def exchangers_and_services(self, domain: str) -> tuple[Sequence[str], Sequence[ServiceRecord]]:
        """The domain's best mail exchangers, and the servers that it announces for mail programs."""

    def may_be_dialled(self, servers: Sequence[tuple[str, int]]) -> Set[tuple[str, int]]:
        """Those of `servers`, as (host, port), that exist and are allowed; none of them is dialled."""


class Attendance(Protocol):
    """Which processes of a kind are at work. `note` and `leave` never raise, and wait a second at most."""

    def note(self, name: str) -> None:
        """That `name` is at work now."""

    def leave(self, name: str) -> None:
        """That `name` has ended in order."""

    def seen(self) -> Mapping[str, datetime]:
        """When each was last noted, in the last day. Raises AttendanceUnknown."""


class AttendanceUnknown(Exception):
    """Nobody can tell now; the text is the kind of the error."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often something happened in a span of time, of which `left` is still to come."""

    count: int
    left: timedelta


class Tallies(Protocol):
    """Counts that begin anew when their span is over. Never raises; each waits a second at most."""

    def add(self, keys: Sequence[str], span: timedelta) -> Sequence[Tally]:
        """Counts one more for each of `keys`; a count that begins now lasts for `span`."""

    def take_back(self, keys: Sequence[str]) -> None:
        """Counts one fewer for each."""

    def forget(self, keys: Sequence[str]) -> None:
        """Counts of each from nothing again."""


class Leases(Protocol):
    """Things that one owner at a time does, until its lease has run out or it gives it back."""

    def take(self, keys: Sequence[str], owner: str, span: timedelta, *, most: int | None = None) -> Set[str]:
        """Those of `keys` that are `owner`'s for `span` from now on: free ones, and ones it had already.

        The first `most` of them. Raises LeasesUnavailable; then nobody knows what was taken.
        """

    def taken(self, keys: Sequence[str]) -> Set[str]:
        """Those of `keys` that are somebody's now. Raises LeasesUnavailable."""

    def release(self, keys: Sequence[str], owner: str) -> None:
        """Gives back what is `owner`'s of `keys`. Never raises: a lease ends by itself as well."""


class LeasesUnavailable(Exception):
    """Nobody can tell whose anything is now; the text is the kind of the error."""


class NotWatched(Exception):
    """Nobody waits for news of a mailbox any more, or can: `text` is a sentence, `category` a word for logs.

    `is_lasting` says that it will be the same until somebody changes something.
    """

    def __init__(self, text: str, category: str, *, is_lasting: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.category = category
        self.is_lasting = is_lasting


class NewsConnection(Protocol):
    """A mailbox that is open to tell of new mail, and waits in no thread of its own.

    `begin`, `receive` and `tend` raise NotWatched when it is over. `now` is monotonic, in seconds.
    """

    def fileno(self) -> int: ...

    def begin(self, now: float) -> None:
        """Asks for news from now on."""

    def receive(self, now: float) -> bool:
        """Hears all that has come, without waiting; whether mail came."""

    def tend(self, now: float) -> None:
        """Does what is due, and notices a server that does not answer."""

    def leave(self) -> None:
        """Takes leave without waiting for the answer, and closes."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class GaveUp:
    """That a mail could not be read; `reason` is the end of a sentence about the reader."""

    reason: str


class MailReader(Protocol):
    """Understands received mail within bounds of time and memory. Never raises for what a mail contains."""

    def read(self, raw: bytes, own_addresses: Sequence[str] = ()) -> "MailReading | GaveUp":
        """The whole mail understood; own addresses are in lower case."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LookedFor:
    """One attempt whose copy is looked for; no copy is dated long before `since`."""

    message_id: str
    attempt_id: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Filed:
    """Where a copy was filed; the numbers are None where the server does not tell them."""

    folder: str
    uid_validity: int | None = None
    uid: int | None = None


class SentMail(Protocol):
    """The folders of sent mail of one mailbox, while its connection lasts. All calls raise LookFailed."""

    def look(self, wanted: LookedFor) -> Looked:
        """Every copy with the wanted Message-ID; none only where nothing was overlooked."""

    def file(self, header: bytes, message: bytes, at: datetime) -> Filed:
        """Files `header` + `message` as read mail of the moment `at`. After a failure it may be there."""


class SentFolders(Protocol):
    """Where copies of sent mail are looked for."""

    def open(self, server: ImapServer) -> AbstractContextManager[SentMail]:
        """The mailbox, signed in. Raises LookFailed."""


class LookFailed(Exception):
    """Nobody could look, which says nothing of what is there: `text` is a sentence, `code` a short word.

    `blames_login` says that the server refused the login itself.
    """

    def __init__(self, text: str, code: str, *, blames_login: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.blames_login = blames_login


Clock = Callable[[], datetime]
