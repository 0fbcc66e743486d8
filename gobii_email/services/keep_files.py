"""The files of a received mail in Django's storage: written before the rows that name them.

A storage may be a network away, and no transaction waits for one. Where it is done twice the same bytes lie
in the same place, so whoever is killed in between leaves nothing behind; no name of a stranger's reaches it.
"""

import uuid
from collections.abc import Sequence

from django.core.files.base import ContentFile
from django.core.files.storage import Storage

from gobii_email.domain.received_content import ReceivedFile
from gobii_email.models import PersistentAgentMessageAttachment


def keep(mail_id: uuid.UUID, files: Sequence[ReceivedFile]) -> list[str]:
    """Where each of `files` lies now, in their order."""
    storage = _storage()
    return [_kept(storage, f"received/{mail_id}/{number}", file.content) for number, file in enumerate(files)]


def drop(names: Sequence[str]) -> None:
    """Deletes what nobody names after all."""
    for name in names:
        _storage().delete(name)


def _kept(storage: Storage, name: str, content: bytes) -> str:
    if storage.exists(name) and storage.size(name) == len(content):
        return name
    return storage.save(name, ContentFile(content))


def _storage() -> Storage:
    return PersistentAgentMessageAttachment._meta.get_field("file").storage
