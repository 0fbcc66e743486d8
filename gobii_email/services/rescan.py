"""A folder whose UIDs have all been given anew: which of its mails were dealt with under another name.

Told apart by Message-ID, among the mails that came since the last good poll: nobody is flooded, and what came
meanwhile is not missed. A server that restores a folder may date every mail in it today, so the sender's own
date counts as well.
"""

from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime

from gobii_email.domain.inbound_mail import Fields
from gobii_email.domain.senders import message_id_of
from gobii_email.models import AgentEmailAccount, ReceivedMail
from gobii_email.ports import MailHead, OpenFolder

CLOCKS_DIFFER_BY = timedelta(minutes=15)
LONGEST_WAY = timedelta(days=2)
"""How long before its arrival a mail may have been written."""


class Rescan:
    """`until` is the last UID that may be a new name, None where all names are as they were."""

    def __init__(self, account: AgentEmailAccount, folder: OpenFolder) -> None:
        self.until: int | None = account.mailbox.rescan_until
        self._account = account
        self._uid_validity = folder.uid_validity
        self._came_after = account.mailbox.baseline_at or account.last_polled_at or account.created_at

    @property
    def since(self) -> date:
        """The day from which on mails are asked for: that before, because the server's day may be another."""
        return (self._came_after - CLOCKS_DIFFER_BY - timedelta(days=1)).date()

    def left_after(self, uid: int) -> int | None:
        """`until`, or None when all that was renamed has been gone through."""
        return None if self.until is None or uid >= self.until else self.until

    def knows(self, head: MailHead, fields: Fields) -> bool:
        """Whether a mail is to be passed over: an old one, or one that was stored under another UID."""
        if self.until is None or head.uid > self.until:
            return False
        return self._is_old(head, fields) or self._is_stored(head, fields)

    def _is_old(self, head: MailHead, fields: Fields) -> bool:
        if head.internal_at is not None and head.internal_at < self._came_after - CLOCKS_DIFFER_BY:
            return True
        written = _date_of(fields)
        return written is not None and written < self._came_after - LONGEST_WAY

    def _is_stored(self, head: MailHead, fields: Fields) -> bool:
        rows = ReceivedMail.objects.filter(endpoint_id=self._account.pk)
        message_id = message_id_of(fields)
        if message_id:
            return rows.filter(rfc_message_id=message_id).exists()
        return rows.filter(rfc_message_id="", size=head.size, internal_at=head.internal_at).exists()


def _date_of(fields: Fields) -> datetime | None:
    try:
        found = parsedate_to_datetime(fields.raw("date").strip())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
