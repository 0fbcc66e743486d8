"""Who a received mail says it is from: one readable address, or nobody.

Stricter than mail programs, because whom an agent listens to hangs on it: a From field that names several
people or comes twice names nobody here, and a name that looks like an address is only a name. Whether the
claim is true is for authentication_results to say.
"""

import re

from gobii_email.domain.addresses import clean_display_name, normalise, parse_address
from gobii_email.domain.automated_mail import auto_submitted, has_null_return_path
from gobii_email.domain.bounce_prose import is_daemon, is_report_subject
from gobii_email.domain.dsn import addresses_in
from gobii_email.domain.inbound_mail import Fields, decoded
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.thread_headers import MAX_ID_CHARACTERS, clean_message_id

MAX_ANSWERED = 40
_MAX_CHARACTERS = 2_000
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_ID = re.compile(rf"<[^<>\s]{{1,{MAX_ID_CHARACTERS - 2}}}>")
_COMPLAINT_SENDERS = frozenset(["staff@hotmail.com", "staff@outlook.com"])


def sender_of(fields: Fields) -> str:
    """The address in From as it is stored and compared; "" where it does not name exactly one."""
    return mailbox_of(fields)[1]


def mailbox_of(fields: Fields) -> tuple[str, str]:
    """(display name, address) of From; ("", "") as for `sender_of`."""
    written = [value for name, value in fields.items if name == "from"]
    if len(written) != 1 or len(written[0]) > _MAX_CHARACTERS:
        return "", ""
    return _mailbox(written[0])


def addresses_of(fields: Fields, name: str) -> tuple[str, ...]:
    """The readable addresses in a field such as Cc, each once, as they are stored."""
    found = (_address(text) for text in addresses_in(" , ".join(fields.all(name))))
    return tuple(dict.fromkeys(filter(None, found)))


def answered_ids(fields: Fields) -> tuple[str, ...]:
    """The Message-IDs that a mail answers, the nearest first: In-Reply-To, then References from the end."""
    direct = _ID.findall(fields.raw("in-reply-to"))
    earlier = reversed(_ID.findall(fields.raw("references")))
    found = (clean_message_id(text) for text in (*direct[:4], *earlier))
    return tuple(dict.fromkeys(filter(None, found)))[:MAX_ANSWERED]


def message_id_of(fields: Fields) -> str:
    """Its own Message-ID in angle brackets, "" where it has none that can be compared and answered."""
    found = _ID.search(fields.raw("message-id"))
    return clean_message_id(found[0] if found else fields.raw("message-id"))


def may_be_report(fields: Fields) -> bool:
    """Whether the header looks like a program's word about a mail of ours; the body has to tell."""
    content_type = fields.raw("content-type").partition(";")[0].strip().lower()
    return (
        content_type in ("multipart/report", "message/delivery-status", "message/feedback-report")
        or has_null_return_path(fields)
        or auto_submitted(fields) not in ("", "no")
        or "x-failed-recipients" in fields
        or is_daemon(fields.get("from"))
        or is_report_subject(fields.get("subject"))
        or sender_of(fields) in _COMPLAINT_SENDERS
    )


def _mailbox(text: str) -> tuple[str, str]:
    bare = _without_comments(_QUOTED.sub(lambda found: "\0" * len(found[0]), text))
    if bare.count("<") > 1 or bare.count(">") != bare.count("<"):
        return "", ""
    name, opened, rest = bare.partition("<")
    if not opened:
        return "", _address(bare)
    address, _, after = rest.partition(">")
    # A comma in a name that nobody quoted is a slip; one after an address begins another mailbox.
    if after.strip() or ("," in name and "@" in name):
        return "", ""
    return clean_display_name(decoded(_unquoted(text[: len(name)]))), _address(address)


def _without_comments(text: str) -> str:
    """`text` with what is in parentheses (RFC 5322 section 3.2.2) blanked out, to the same length."""
    depth, kept = 0, []
    for character in text:
        depth += character == "("
        kept.append(" " if depth else character)
        depth -= character == ")" and depth > 0
    return "".join(kept)


def _unquoted(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name).replace('"', " ").strip()


def _address(text: str) -> str:
    try:
        return normalise(str(parse_address(text.strip())))
    except InvalidMail:
        return ""
