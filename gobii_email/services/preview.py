"""A message as somebody may look at it: its HTML in a document of its own, its headers, its bytes."""

import base64
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as modern
from html import escape

from gobii_email.domain.inbound_mail import header_block
from gobii_email.domain.safe_html import SafeHtml, safe_html
from gobii_email.models import FrozenMessage, PersistentAgentMessage

MAX_PICTURE_BYTES = 1_000_000
MAX_SHOWN_BYTES = 60_000
"""Of one text on a page, so that a mail of any size makes none too large."""
_POLICY = (
    "sandbox; default-src 'none'; style-src '{css_hash}'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
_DOCUMENT = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The message</title>'
    '<meta name="color-scheme" content="light"><style>{css}</style></head><body>{body}</body></html>'
)


@dataclass(frozen=True, slots=True)
class Document:
    """An HTML document and the Content-Security-Policy it is to be served with."""

    html: str
    policy: str


def as_document(frozen: FrozenMessage) -> Document:
    """The HTML as its recipients get it, with its own pictures put in; it loads and runs nothing."""
    pictures = _pictures(frozen) if "cid:" in frozen.html.lower() else {}
    return _document(safe_html(frozen.html, pictures))


def document_of(message: PersistentAgentMessage) -> Document | None:
    """The HTML of a message, sent or received; None where it has none, or none yet."""
    if message.is_outbound:
        frozen = FrozenMessage.objects.filter(message=message).first()
        return None if frozen is None else as_document(frozen)
    # It was made safe when it was read, where that may take what it takes.
    payload = message.raw_payload or {}
    body = str(payload.get("chat_body_html_v1") or "")
    return _document(SafeHtml(body, str(payload.get("chat_body_css") or ""))) if body else None


def _document(safe: SafeHtml) -> Document:
    html = _DOCUMENT.format(css=safe.css, body=safe.body)
    return Document(html, _POLICY.format(css_hash=safe.css_hash))


def received_headers(raw: bytes) -> str:
    """The header fields of a mail as it was received."""
    return header_block(raw).decode("utf-8", "replace")


def received_raw(raw: bytes) -> str:
    """The beginning of a mail as it was received."""
    return raw[:MAX_SHOWN_BYTES].decode("utf-8", "replace")


def raw_headers(frozen: FrozenMessage) -> str:
    """The header fields as they go over the wire, without the attempt's own."""
    return bytes(frozen.mime).partition(b"\r\n\r\n")[0].decode("utf-8", "replace")


def raw(frozen: FrozenMessage) -> str:
    """The beginning of the message as it goes over the wire."""
    return bytes(frozen.mime)[:MAX_SHOWN_BYTES].decode("utf-8", "replace")


def beginning(text: str) -> str:
    """As much of `text` as takes up `MAX_SHOWN_BYTES` on a page, where some characters take up more."""
    length = MAX_SHOWN_BYTES
    while len(escape(text[:length]).encode()) > MAX_SHOWN_BYTES:
        length = length * 3 // 4
    return text[:length]


def _pictures(frozen: FrozenMessage) -> dict[str, str]:
    parsed = message_from_bytes(bytes(frozen.mime), policy=modern)
    parts = [part for part in parsed.walk() if part["content-id"]]
    found = {str(part["content-id"]).strip("<> "): _as_data(part) for part in parts}
    return {name: data for name, data in found.items() if data}


def _as_data(part: EmailMessage) -> str:
    content = part.get_payload(decode=True) if part.get_content_maintype() == "image" else None
    if not isinstance(content, bytes) or len(content) > MAX_PICTURE_BYTES:
        return ""
    return f"data:{part.get_content_type()};base64,{base64.b64encode(content).decode()}"
