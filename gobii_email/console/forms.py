"""What people type into the console: filters, reasons, a mailbox's settings.

A form says what kind of value each field holds. Whether the settings of a mailbox are right is decided by
services/accounts, the same as for every other way in; a password is taken and never shown again.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.utils import timezone

from gobii_email.console.audit import MAX_REASON_CHARACTERS
from gobii_email.domain.lifecycle import MessageStatus, Provider
from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount
from gobii_email.services.accounts import InvalidAccount
from gobii_email.services.browse import WAITING, Wanted, Whose

MOST_CHOICES = 200
_ANY = ("", "Any")
_STATUSES = [_ANY, (WAITING, "waiting"), *((str(s), str(s).replace("_", " ")) for s in MessageStatus)]
_TRANSPORTS = [
    _ANY,
    (Provider.SMTP, "own server (SMTP)"),
    (Provider.POSTMARK, "Postmark"),
    (Provider.SIMULATION, "simulation"),
]


class FilterForm(forms.Form):
    """Which messages to list; it stands in the address, so a list can be bookmarked and sent around."""

    status = forms.ChoiceField(required=False, choices=_STATUSES)
    recipient = forms.CharField(
        required=False, max_length=320, widget=forms.TextInput(attrs={"inputmode": "email"})
    )
    transport = forms.ChoiceField(required=False, choices=_TRANSPORTS)
    account = forms.ChoiceField(required=False, label="Mailbox")
    agent = forms.ChoiceField(required=False)
    since = forms.DateTimeField(required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"}))
    until = forms.DateTimeField(required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"}))

    def __init__(self, data: Mapping[str, Any], whose: Whose) -> None:
        super().__init__(data, auto_id="filter-%s")
        accounts = whose.accounts().order_by("endpoint__address").values_list("pk", "endpoint__address")
        agents = whose.agents().order_by("name").values_list("pk", "name")[:MOST_CHOICES]
        self._offer("account", [(str(pk), address) for pk, address in accounts[:MOST_CHOICES]])
        self._offer("agent", [(str(pk), name) for pk, name in agents])

    def _offer(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [_ANY, *choices]

    def wanted(self) -> Wanted:
        """What the fields without an error ask for."""
        given = self.cleaned_data
        return Wanted(**{name: value for name, value in given.items() if value})


class ReasonForm(forms.Form):
    """Why somebody does something; kept in the log."""

    reason = forms.CharField(
        required=False,
        max_length=MAX_REASON_CHARACTERS,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text="Kept in the log below. Optional.",
    )


class PauseForm(forms.Form):
    """Until when and why a mailbox is left alone."""

    LENGTHS = {
        "1h": ("For an hour", timedelta(hours=1)),
        "1d": ("For a day", timedelta(days=1)),
        "7d": ("For a week", timedelta(days=7)),
        "": ("Until somebody resumes it", None),
    }
    reason = forms.CharField(max_length=MAX_REASON_CHARACTERS, help_text="Shown to everybody who asks why.")
    length = forms.ChoiceField(
        label="How long", required=False, choices=[(key, text) for key, (text, _) in LENGTHS.items()]
    )

    def until(self) -> datetime | None:
        length = self.LENGTHS[self.cleaned_data["length"]][1]
        return None if length is None else timezone.now() + length


def _password() -> forms.CharField:
    return forms.CharField(
        label="Password",
        required=False,
        strip=False,
        widget=forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password"}),
    )


_SIDE_LABELS = {
    "host": "Server",
    "port": "Port",
    "security": "Security",
    "auth": "Sign-in",
    "username": "User name",
}
SIDES = {"smtp": "Sending (SMTP)", "imap": "Receiving (IMAP)"}
LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection", "pool_ttl")


class SettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    """A mailbox's settings as they are stored, and as somebody wants them."""

    smtp_password = _password()
    imap_password = _password()
    version = forms.CharField(widget=forms.HiddenInput, required=False)

    class Meta:
        model = AgentEmailAccount
        fields = [
            *(f"{side}_{part}" for side in SIDES for part in _SIDE_LABELS),
            *("imap_folder", "poll_interval_sec", *LIMITS),
        ]
        labels = {
            **{f"{side}_{part}": label for side in SIDES for part, label in _SIDE_LABELS.items()},
            "imap_folder": "Folder",
            "poll_interval_sec": "Seconds between polls",
            "per_minute": "Recipients a minute",
            "per_hour": "Recipients an hour",
            "per_day": "Recipients a day",
            "max_connections": "Connections at once",
            "messages_per_connection": "Messages on one connection",
            "pool_ttl": "Seconds a connection is kept",
        }
        help_texts = {"pool_ttl": ""}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for side in SIDES:
            is_stored = getattr(self.instance, f"{side}_password_encrypted") is not None
            self.fields[f"{side}_password"].help_text = (
                "One is stored. Leave this empty to keep it." if is_stored else "None is stored."
            )

    def _post_clean(self) -> None:
        """The account itself is left alone: what is wrong with an edit is said by edit_account."""

    def changes(self) -> dict[str, object]:
        """What is different from what is stored, by the account's own field names."""
        mine = set(self.Meta.fields)
        return {name: self.cleaned_data[name] for name in self.changed_data if name in mine}

    def password(self, side: str) -> Secret | None:
        typed = self.cleaned_data.get(f"{side}_password")
        return Secret(typed) if typed else None

    def complain(self, wrong: InvalidAccount) -> None:
        """Puts each problem beside its field, or above all where there is none for it."""
        for problem in wrong.problems:
            field = problem.field.replace(".", "_")
            text = f"{problem.reason} {problem.remedy}".strip()
            is_shown = field in self.fields
            text = text[:1].upper() + text[1:] if is_shown else f"{field}: {text}"
            self.add_error(field if is_shown else None, text)

    def side(self, name: str) -> list[forms.BoundField]:
        more = ("imap_folder", "poll_interval_sec") if name == "imap" else ()
        return [
            self[field] for field in (*(f"{name}_{part}" for part in _SIDE_LABELS), f"{name}_password", *more)
        ]

    def sides(self) -> list[tuple[str, list[forms.BoundField]]]:
        return [(title, self.side(name)) for name, title in SIDES.items()]

    def limits(self) -> list[forms.BoundField]:
        return [self[name] for name in LIMITS]
