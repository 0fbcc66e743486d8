"""What became of the mail of the last day, measured by what was promised."""

from django.utils import timezone

from gobii_email.management.examinations.row import OK, WARN, Row
from gobii_email.services.browse import Whose
from gobii_email.services.overview import OBJECTIVE, overview


def budget() -> Row:
    """How much of the day's error budget is left; what recipients and content cost is not in it."""
    day = overview(Whose.everybodys(), timezone.now())
    left = day.budget_left
    if left is None:
        return Row("budget", OK, "error budget of the last 24 hours: nothing has ended in them")
    text = (
        f"error budget of the last 24 hours: {max(left, 0):.0%} left; sent: {day.sent:,}, failed through no"
        f" fault of recipients or content: {day.avoidable_failures:,}"
    )
    if left >= 0:
        return Row("budget", OK, text)
    share = f"{1 - OBJECTIVE:.1%}"
    hint = f"More than {share} failed: see why in the console, Messages, status failed; then the rows above."
    return Row("budget", WARN, text, hint)
