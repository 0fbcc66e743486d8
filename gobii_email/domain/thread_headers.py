"""Which conversation a mail belongs to: Message-IDs, In-Reply-To, References.

Rules from RFC 5322 section 3.6.4. Ids of other systems are kept when they are harmless on the
wire, even where they bend the grammar, and dropped when they are not: a thread is worth less than
a safe header.
"""

import re
from collections.abc import Iterable

MAX_REFERENCES = 20
MAX_ID_CHARACTERS = 250

# Printable ASCII without blanks and angle brackets; "=?" would let a reader's decoder loose on it.
_ID = re.compile(rf"<(?![^>]{{0,250}}=\?)[!-;=?-~]{{1,{MAX_ID_CHARACTERS - 2}}}>")


def clean_message_id(text: str) -> str:
    """The id in `text`, in angle brackets; "" when there is none that can be put in a header."""
    bare = text.strip()
    return bare if _ID.fullmatch(bare) else bare_id if _ID.fullmatch(bare_id := f"<{bare}>") else ""


def reply_headers(
    parent_message_id: str, parent_references: str | Iterable[str] = ""
) -> tuple[str, tuple[str, ...]]:
    """(In-Reply-To, References) of a reply: the parent's references and then the parent itself.

    Without a usable parent id there is nothing to reply to: ("", ()). Each id occurs once; of a long
    thread the first id and the latest ones stay, 20 in all.
    """
    parent = clean_message_id(parent_message_id)
    if not parent:
        return "", ()
    joined = parent_references if isinstance(parent_references, str) else " ".join(parent_references)
    earlier = [found for found in dict.fromkeys(_ID.findall(joined)) if found != parent]
    return parent, bounded_references((*earlier, parent))


def bounded_references(references: tuple[str, ...]) -> tuple[str, ...]:
    """At most 20 of `references`: the first, which names the thread, and the latest."""
    if len(references) <= MAX_REFERENCES:
        return references
    return references[:1] + references[1 - MAX_REFERENCES :]
