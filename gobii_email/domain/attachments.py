"""What is attached to a mail: file names, content types, and images shown inside the HTML.

Knows how names and types are made harmless and how `cid:` references find their file; how a file
is encoded is left to composition. Rules from RFC 2045, RFC 2183 and RFC 2392.
"""

import html as html_entities
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from gobii_email.domain.addresses import one_line
from gobii_email.domain.invalid_mail import InvalidMail

MAX_FILENAME_CHARACTERS = 200

_CONTENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,199}\Z")
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_CONTENT_TYPE = re.compile(rf"\s*({_NAME})/({_NAME})\s*(?:;[ -~]*)?\Z", re.ASCII)
_CHARSET = re.compile(r";\s*charset=\"?([A-Za-z0-9._-]{1,40})\"?\s*(?:;|\Z)", re.ASCII | re.IGNORECASE)
# A reference is quoted, in CSS parentheses, or a bare attribute value.
_REFERENCE = re.compile(
    r"""(?P<before>["'])cid:(?P<quoted>[^"'<>]+)(?P=before)"""
    r"""|(?<=\()\s*cid:(?P<css>[^"'()<>]+)(?=\))"""
    r"""|(?<==)cid:(?P<bare>[^\s"'<>]+)""",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class EmailAttachmentPayload:
    """One file of a mail. It is inline when it has both that disposition and a content id."""

    filename: str
    content: bytes
    content_type: str
    content_id: str = ""
    disposition: str = "attachment"

    @property
    def is_inline(self) -> bool:
        return self.disposition == "inline" and bool(self.content_id)

    @property
    def size_bytes(self) -> int:
        return len(self.content)


def clean_attachment(attachment: EmailAttachmentPayload) -> EmailAttachmentPayload:
    """`attachment` with a file name, type and content id that can be put in header fields."""
    content_id = _bare_id(attachment.content_id)
    if content_id and not _CONTENT_ID.match(content_id):
        raise InvalidMail(
            "attachments",
            f"{content_id[:80]!a} cannot be a content id",
            "Use letters, digits, dots and hyphens",
        )
    return replace(
        attachment,
        filename=clean_filename(attachment.filename),
        content_type=clean_content_type(attachment.content_type),
        content_id=content_id,
    )


def clean_filename(filename: str) -> str:
    """The last component of `filename` as every file system takes it; "attachment" if nothing is left.

    Control and direction characters vanish, the signs Windows forbids become "_".
    """
    name = re.sub(r'[<>:"|?*]', "_", one_line(re.split(r"[/\\]", filename)[-1])).strip(". ")
    if len(name) > MAX_FILENAME_CHARACTERS:
        stem, dot, suffix = name.rpartition(".")
        suffix = dot + suffix if stem and len(suffix) <= 16 else ""
        name = name[: MAX_FILENAME_CHARACTERS - len(suffix)] + suffix
    return name or "attachment"


def clean_content_type(content_type: str) -> str:
    """`type/subtype` in lower case, with its charset if it is text; `application/octet-stream` when unusable.

    Containers are unusable too: multipart/* and message/* may not be encoded (RFC 2045 section 6.4).
    """
    found = _CONTENT_TYPE.match(content_type)
    if not found or found[1].lower() in ("multipart", "message"):
        return "application/octet-stream"
    bare = f"{found[1]}/{found[2]}".lower()
    charset = _CHARSET.search(content_type) if bare.startswith("text/") else None
    return f'{bare}; charset="{charset[1].lower()}"' if charset else bare


def match_inline_images(
    html: str, attachments: Sequence[EmailAttachmentPayload]
) -> tuple[str, tuple[EmailAttachmentPayload, ...]]:
    """`html` with its `cid:` references made canonical, and the attachments with the referenced ones inline.

    A reference names a content id, a file name or the last component of one, percent-encoded or not.
    The same reference twice shares one part; two references to equal names take one file each. What
    is not referenced stays a regular attachment, and a reference that matches nothing stays as it is.
    """
    if not attachments:
        return html, ()
    chosen: dict[str, int] = {}  # reference -> position of its attachment

    def canonical(found: re.Match[str]) -> str:
        reference = found["quoted"] or found["css"] or found["bare"]
        position = _position_of(reference, attachments, chosen)
        if position is None:
            return found[0]
        chosen[reference] = position
        return found[0].replace(reference, canonical_id(position))

    def canonical_id(position: int) -> str:
        order = list(dict.fromkeys([*chosen.values(), position])).index(position) + 1
        return _canonical_id(order, attachments[position].filename)

    rewritten = _REFERENCE.sub(canonical, html)
    inline = {position: canonical_id(position) for position in chosen.values()}
    return rewritten, tuple(
        replace(attachment, content_id=inline[position], disposition="inline")
        if position in inline
        else replace(attachment, content_id="", disposition="attachment")
        for position, attachment in enumerate(attachments)
    )


def _position_of(
    reference: str, attachments: Sequence[EmailAttachmentPayload], chosen: dict[str, int]
) -> int | None:
    """Which attachment `reference` means: by its exact names first, unclaimed ones first among equals."""
    if reference in chosen:
        return chosen[reference]
    wanted = html_entities.unescape(reference).strip()
    spellings = {wanted, unquote(wanted)}
    for names_of in (_content_ids, _full_names, _base_names):
        looked_for = spellings if names_of is not _base_names else {_base_name(text) for text in spellings}
        matches = [i for i, attachment in enumerate(attachments) if looked_for & names_of(attachment)]
        if matches:
            return next((i for i in matches if i not in chosen.values()), matches[0])
    return None


def _content_ids(attachment: EmailAttachmentPayload) -> set[str]:
    return {_bare_id(attachment.content_id)} - {""}


def _full_names(attachment: EmailAttachmentPayload) -> set[str]:
    return {attachment.filename, attachment.filename.lstrip("/")}


def _base_names(attachment: EmailAttachmentPayload) -> set[str]:
    return {_base_name(attachment.filename)}


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1].casefold()


def _bare_id(content_id: str) -> str:
    return content_id.strip().removeprefix("<").removesuffix(">")


def _canonical_id(order: int, filename: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", clean_filename(filename).lower()).strip("-.")
    return f"inline-{order}-{slug[-80:].lstrip('-.') or 'image'}"
