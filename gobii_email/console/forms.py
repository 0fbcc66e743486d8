"""What people type into the console: filters, reasons, a mailbox's settings.

A form says what kind of value each field holds. Whether the settings of a mailbox are right is decided by
services/accounts, the same as for every other way in; a password is taken and never shown again.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.utils import timezone

from gobii_email.console.audit import MAX_REASON_CHARACTERS
from gobii_email.domain.addresses import parse_address
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import MessageStatus, Provider
from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount
from gobii_email.services.accounts import InvalidAccount
from gobii_email.services.browse import RECEIVED, SENT, WAITING, Wanted, Whose

MOST_CHOICES = 200
_ANY = ("", "Any")
_STATUSES = [_ANY, (WAITING, "waiting"), *((str(s), str(s).replace("_", " ")) for s in MessageStatus)]
_DIRECTIONS = [_ANY, (SENT, "sent"), (RECEIVED, "received")]
_TRANSPORTS = [
    _ANY,
    (Provider.SMTP, "own server (SMTP)"),
    (Provider.POSTMARK, "Postmark"),
    (Provider.SIMULATION, "simulation"),
]


class FilterForm(forms.Form):
    """Which messages to list; it stands in the address, so a list can be bookmarked and sent around."""

    direction = forms.ChoiceField(required=False, choices=_DIRECTIONS)
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
        agents = whose.agents().order_by("name").values_list("pk", "name")
        _offer(self.fields["account"], [_ANY, *_choices(accounts, data.get("account"))])
        _offer(self.fields["agent"], [_ANY, *_choices(agents, data.get("agent"))])

    def wanted(self) -> Wanted:
        """What the fields without an error ask for."""
        given = self.cleaned_data
        return Wanted(**{name: value for name, value in given.items() if value})


def _offer(field: forms.Field, choices: list[tuple[str, str]]) -> None:
    assert isinstance(field, forms.ChoiceField)
    field.choices = choices


def _choices(rows: Any, chosen: str | None) -> list[tuple[str, str]]:
    """The first of `rows`, pairs of key and name, and the one that is chosen where it is not among them."""
    found = [(str(pk), name) for pk, name in rows[:MOST_CHOICES]]
    if chosen and len(found) == MOST_CHOICES and chosen not in dict(found):
        found += [(str(pk), name) for pk, name in rows.filter(pk=_uuid(chosen))]
    return found


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


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
_FOLDER = ("imap_folder", "poll_interval_sec", "imap_idle_enabled", "copies_to_sent")
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
            *_FOLDER,
            *LIMITS,
        ]
        labels = {
            **{f"{side}_{part}": label for side in SIDES for part, label in _SIDE_LABELS.items()},
            "imap_folder": "Folder",
            "poll_interval_sec": "Seconds between polls",
            "imap_idle_enabled": "Watch for new mail",
            "copies_to_sent": "File copies in Sent",
            "per_minute": "Recipients a minute",
            "per_hour": "Recipients an hour",
            "per_day": "Recipients a day",
            "max_connections": "Connections at once",
            "messages_per_connection": "Messages on one connection",
            "pool_ttl": "Seconds a connection is kept",
        }
        help_texts = {
            "pool_ttl": "",
            "imap_idle_enabled": "Where the server tells of it (IDLE), new mail is read at once.",
            "copies_to_sent": "For servers that do not do so themselves.",
        }

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
        more = _FOLDER if name == "imap" else ()
        return [
            self[field] for field in (*(f"{name}_{part}" for part in _SIDE_LABELS), f"{name}_password", *more)
        ]

    def sides(self) -> list[tuple[str, list[forms.BoundField]]]:
        return [(title, self.side(name)) for name, title in SIDES.items()]

    def limits(self) -> list[forms.BoundField]:
        return [self[name] for name in LIMITS]


class AddressForm(forms.Form):
    """Which mailbox is to be added, and which agent writes from it."""

    address = forms.CharField(
        max_length=320,
        label="E-mail address",
        widget=forms.EmailInput(attrs={"autocomplete": "email", "spellcheck": "false"}),
        help_text="The mailbox that the agent is to send from.",
    )
    agent = forms.ChoiceField(required=False)
    name = forms.CharField(
        required=False, max_length=255, label="Name of the new agent", help_text="Only for a new agent."
    )

    def __init__(self, data: Mapping[str, Any] | None, whose: Whose) -> None:
        super().__init__(data, auto_id="add-%s")
        agents = whose.agents().order_by("name").values_list("pk", "name")
        choices = [*_choices(agents, data and data.get("agent")), ("", "A new agent")]
        _offer(self.fields["agent"], choices)
        self.fields["agent"].initial = choices[0][0]

    def clean_address(self) -> str:
        try:
            return str(parse_address(self.cleaned_data["address"]))
        except InvalidMail as wrong:
            raise forms.ValidationError(str(wrong)) from None

    def clean(self) -> None:
        given = self.cleaned_data
        if not self.errors and not given["agent"] and not given["name"].strip():
            self.add_error("name", "Choose an agent, or give the new one a name.")


_SECURITIES = [("ssl", "SSL/TLS"), ("starttls", "STARTTLS")]


def _port() -> forms.IntegerField:
    return forms.IntegerField(required=False, min_value=1, max_value=65535, label="Port")


class ConnectForm(forms.Form):
    """The settings of a new mailbox that is opened with a password."""

    username = forms.CharField(
        max_length=255, label="User name", widget=forms.TextInput(attrs={"autocomplete": "username"})
    )
    password = forms.CharField(
        strip=False,
        max_length=8192,
        widget=forms.PasswordInput(render_value=False, attrs={"autocomplete": "off"}),
        help_text="Stored encrypted, shown to nobody, and told to this mailbox's servers alone.",
    )
    smtp_host = forms.CharField(max_length=255, label="Server")
    smtp_port = _port()
    smtp_security = forms.ChoiceField(choices=_SECURITIES, label="Security")
    imap_host = forms.CharField(
        max_length=255,
        required=False,
        label="Server",
        help_text="Leave it empty where nothing is to be received.",
    )
    imap_port = _port()
    imap_security = forms.ChoiceField(choices=_SECURITIES, label="Security")
    is_trusted = forms.BooleanField(
        label="These are my provider's servers: I have compared them with its help pages.",
        error_messages={"required": "Compare the servers with your provider's help pages, then tick this."},
    )

    def __init__(self, *args: Any, is_confirmed: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if is_confirmed:
            del self.fields["is_trusted"]
        if not self.is_bound and not self.initial.get("username"):
            self.fields["username"].help_text = "As the provider gave it to you; here it is not the address."

    def document(self) -> dict[str, object]:
        """The mailbox as services/accounts reads it."""
        sides = [side for side in SIDES if self.cleaned_data[f"{side}_host"]]
        return {side: self._server(side) for side in sides}

    def _server(self, side: str) -> dict[str, object]:
        given = self.cleaned_data
        values = {part: given[f"{side}_{part}"] for part in ("host", "port", "security")}
        values |= {part: given[part] for part in ("username", "password")}
        return {name: value for name, value in values.items() if value not in (None, "")}

    def complain(self, wrong: InvalidAccount) -> None:
        """Puts each problem beside its field; name and password are the same for both sides."""
        for problem in wrong.problems:
            _, _, part = problem.field.partition(".")
            field = part if part in {"username", "password"} else problem.field.replace(".", "_")
            text = f"{problem.reason} {problem.remedy}".strip()
            self.add_error(field if field in self.fields else None, text[:1].upper() + text[1:])

    def account_fields(self) -> list[forms.BoundField]:
        return [self["username"], self["password"]]

    def sides(self) -> list[tuple[str, list[forms.BoundField]]]:
        parts = ("host", "port", "security")
        return [(title, [self[f"{side}_{part}"] for part in parts]) for side, title in SIDES.items()]
