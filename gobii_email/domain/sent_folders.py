"""Where a mailbox keeps what was sent: the folder that is marked so, else one that is usually called so.

Marks are the special uses of RFC 6154. Names are compared without case at the top of the mailbox, below INBOX
and below Gmail's own folder; they come from the mail programs and providers that make such folders.
"""

import re
from collections.abc import Collection, Sequence

MOST = 4
"""Folders that are looked into at most."""
_SENT, _ALL = "\\sent", "\\all"
_PARENT = re.compile(r"(?:inbox|\[gmail\]|\[google mail\])[/.\\]")
_NAMES = (
    "sent",
    "sent items",
    "sent mail",
    "sent messages",
    "sent-mail",
    "gesendet",
    "gesendete elemente",
    "gesendete objekte",
    "gesendete nachrichten",
    "envoyés",
    "envoyes",
    "messages envoyés",
    "éléments envoyés",
    "courrier envoyé",
    "enviados",
    "elementos enviados",
    "mensajes enviados",
    "correo enviado",
    "itens enviados",
    "inviata",
    "posta inviata",
    "verzonden",
    "verzonden items",
    "verzonden berichten",
    "skickat",
    "skickade objekt",
    "sendt",
    "sendte elementer",
    "sendt post",
    "lähetetyt",
    "wysłane",
    "elementy wysłane",
    "odeslané",
    "odeslaná pošta",
    "elküldött elemek",
    "gönderilmiş öğeler",
    "отправленные",
    "надіслані",
    "送信済み",
    "送信済みメール",
    "已发送",
    "已发送邮件",
    "寄件備份",
    "보낸편지함",
)


def sent_folders(listed: Sequence[tuple[str, Collection[str]]]) -> tuple[str, ...]:
    """The folders that copies of sent mail may lie in, the one to file into first; () when there is none.

    `listed` has each folder's name and its flags in lower case. Where one is marked as Sent, names do not
    count. A folder of all mail holds what was sent as well, also after somebody has archived it.
    """
    marked = [name for name, flags in listed if _SENT in flags]
    sent = marked or sorted((name for name, _ in listed if _bare(name) in _NAMES), key=_rank)
    everything = [name for name, flags in listed if _ALL in flags] if sent else []
    return tuple(dict.fromkeys([*sent[: MOST - 1], *everything[:1]]))


def _bare(name: str) -> str:
    folded = name.strip().casefold()
    parent = _PARENT.match(folded)
    return folded[parent.end() :] if parent else folded


def _rank(name: str) -> int:
    """How usual the name is, 0 for the most usual."""
    return _NAMES.index(_bare(name))
