"""Who did what, when and why: rows of Django's own log, which the admin shows too."""

from collections.abc import Sequence

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest

SHOWN = 10
MAX_REASON_CHARACTERS = 500


def note(request: HttpRequest, about: Model, what: str, reason: str = "", *, flag: int = CHANGE) -> None:
    """Writes down that the user did `what`, a sentence, for `reason`. Neither may hold a secret."""
    LogEntry.objects.create(
        user_id=request.user.pk,
        content_type=ContentType.objects.get_for_model(about),
        object_id=str(about.pk),
        object_repr=str(about)[:200],
        action_flag=flag,
        change_message=f"{what} Reason: {reason[:MAX_REASON_CHARACTERS]}" if reason else what,
    )


def notes_about(*objects: Model) -> Sequence[LogEntry]:
    """The latest notes about `objects`, which share one key, newest first. In one statement."""
    kinds = ContentType.objects.get_for_models(*objects).values()
    rows = LogEntry.objects.filter(content_type__in=list(kinds), object_id=str(objects[0].pk))
    return list(rows.select_related("user").order_by("-action_time", "-id")[:SHOWN])
