"""Moments, statuses and lengths of time as the console's pages write them: never by colour alone."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil

register = template.Library()

_MARKS = {
    "sent": "✓", "delivered": "✓", "accepted": "✓", "ok": "✓", "active": "✓",
    "failed": "✗", "refused": "✗", "bounced": "✗", "fail": "✗", "blocked": "✗",
    "in_doubt": "?", "partially_sent": "◑", "warn": "!", "deferred": "↻",
    "queued": "…", "pending": "…", "sending": "→", "received": "←",
    "cancelled": "⊘", "skipped": "·", "paused": "‖",
}  # fmt: skip
_TONES = {
    "good": {"sent", "delivered", "accepted", "ok", "active"},
    "bad": {
        "failed",
        "refused",
        "bounced",
        "fail",
        "blocked",
        "auth_needed",
        "config_needed",
        "held",
        "unread",
    },
    "odd": {
        "in_doubt",
        "partially_sent",
        "warn",
        "deferred",
        "limited",
        "quota",
        "paused",
        "failing",
        "backoff",
    },
}
_WORDS = {"ok": "passed", "fail": "failed", "warn": "warning", "auth_needed": "sign-in needed",
          "config_needed": "settings need attention", "backoff": "server left alone", "failing": "last error",
          "unfinished": "not finished", "unread": "not read"}  # fmt: skip


@register.filter
def status(value: object, word: str = "") -> SafeString:
    """A status as icon, word and colour."""
    name = str(value)
    tone = next((tone for tone, names in _TONES.items() if name in names), "plain")
    shown = word or _WORDS.get(name, name.replace("_", " "))
    return format_html(
        '<span class="status {}"><span aria-hidden="true">{}</span> {}</span>',
        tone,
        _MARKS.get(name, "•"),
        shown,
    )


@register.filter
def moment(at: datetime | None) -> SafeString | str:
    """How long ago or ahead, with the exact time beside it for machines and pointers."""
    if at is None:
        return "–"
    exact = at.astimezone(timezone.get_current_timezone())
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        at.isoformat(),
        f"{exact:%Y-%m-%d %H:%M:%S %Z}",
        _relative(at),
    )


@register.filter
def clock(at: datetime | None) -> SafeString | str:
    """The exact time."""
    if at is None:
        return "–"
    exact = at.astimezone(timezone.get_current_timezone())
    return format_html('<time datetime="{}">{}</time>', at.isoformat(), f"{exact:%Y-%m-%d %H:%M:%S}")


def _relative(at: datetime) -> str:
    now = timezone.now()
    if abs(now - at) < timedelta(minutes=1):
        seconds = int(abs(now - at).total_seconds())
        return f"{seconds} s ago" if at <= now else f"in {seconds} s"
    return f"{timesince(at, now, depth=1)} ago" if at < now else f"in {timeuntil(at, now, depth=1)}"


@register.filter
def span(value: timedelta | None) -> str:
    """A length of time such as `1.4 s`, `12 min`, `3 h`."""
    if value is None:
        return "–"
    seconds = value.total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


@register.filter
def percent(share: float | None) -> str:
    """`0.4 %`, `12 %`; a dash where there is nothing to divide."""
    if share is None:
        return "–"
    return f"{share * 100:.0f} %" if abs(share) >= 0.1 or share == 0 else f"{share * 100:.1f} %"


@register.filter
def unlocalised(number: float) -> str:
    """A number for a drawing: with a point, whatever the language."""
    return f"{number:g}"


@register.filter
def percent_exact(share: float) -> str:
    return f"{share * 100:g} %"


@register.filter
def most(numbers: Iterable[int]) -> int:
    return max(numbers, default=0) or 1


@register.filter
def words(name: str) -> str:
    return name.replace("_", " ")


@register.filter
def listed(value: object) -> str:
    """A fact of a test: a text, a number, or a list of texts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@register.filter
def transport(provider: object) -> str:
    names = {"smtp": "own server (SMTP)", "postmark": "Postmark", "postmark_simulation": "simulation"}
    return names.get(str(provider), str(provider))
