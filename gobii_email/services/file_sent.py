"""Filing a copy of accepted mail into the account's Sent folder, where nobody else does so.

That it is about to be filed is written down first, and it is searched for before it is filed again: so it is
there once, whatever dies in between. Whether it succeeds never touches the delivery.
"""

from datetime import datetime, timedelta

from gobii_email.domain.composition import with_attempt_header
from gobii_email.domain.filing_habit import Habit
from gobii_email.models import AgentEmailAccount, SentCopy
from gobii_email.models.queue import load_mime
from gobii_email.ports import SentMail
from gobii_email.services.learn import SETTLED
from gobii_email.services.look import files_for_sure
from gobii_email.services.record import release_connection


def files_copies(account: AgentEmailAccount) -> bool:
    """Whether copies are to be filed: asked for, and not known to be the provider's own business."""
    return account.copies_to_sent and not files_for_sure(account)


def is_time_to_file(copy: SentCopy, habit: Habit, now: datetime) -> bool:
    """Whether a server that files by itself has had the time to do so."""
    patience = habit.proof_after(SETTLED) if habit.files_itself else timedelta(0)
    return now - copy.since >= max(SETTLED, patience)


def file_copy(copy: SentCopy, sent: SentMail, now: datetime, *, tried_until: datetime) -> None:
    """Files what a look has just found missing. Raises LookFailed; then a look after `tried_until` tells."""
    copy.state, copy.look_at = SentCopy.State.APPENDED, tried_until
    copy.save()
    header = with_attempt_header(b"", str(copy.attempt_id))
    message = load_mime(copy.attempt.message_id)
    release_connection()
    filed = sent.file(header, message, copy.since)
    copy.folder, copy.uid_validity, copy.uid = filed.folder, filed.uid_validity, filed.uid
    copy.found_at, copy.look_at, copy.reason = now, None, ""
    copy.save()
