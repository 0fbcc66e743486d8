"""What an operator may do about a mailbox, or several: test, poll, pause, resume, clear a backoff.

Each asks on a page of its own and acts on POST; the page of one endpoint and the list of mailboxes offer the
same acts. What they do is left to services/diagnose and services/hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from gobii_email.models import AgentEmailAccount
from gobii_email.services import diagnose, hold
from gobii_email.services.poll_schedule import poll_now


class NothingAsked(forms.Form):
    """Only whether it is meant."""


class TestForm(forms.Form):
    sends_to_self = forms.BooleanField(
        required=False,
        label="Send a small mail to the mailbox itself as well",
        help_text="It is looked for in the inbox where receiving is set up and tested, for up to a minute.",
    )


class PauseForm(forms.Form):
    reason = forms.CharField(
        max_length=200,
        help_text="Shown to the owner, and in the story of every message that waits for it.",
        widget=forms.TextInput(attrs={"size": 60}),
    )
    until = forms.DateTimeField(
        required=False,
        label="Until (UTC)",
        help_text="Empty: until somebody resumes it.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
    )

    def clean_until(self) -> datetime | None:
        until: datetime | None = self.cleaned_data["until"]
        if until is not None and until <= timezone.now():
            raise forms.ValidationError("That is past. Choose a later time, or leave it empty.")
        return until


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an act in a sentence, and the page that shows more of it."""

    text: str
    url: str = ""
    is_done: bool = True


@dataclass(frozen=True, slots=True)
class MailboxAct:
    """One thing to do: its name in addresses, its button, the question, what it asks for, and doing it."""

    name: str
    button: str
    question: str
    do: Callable[[AgentEmailAccount, Mapping[str, Any], str], Done]
    form: type[forms.Form] = NothingAsked
    most: int = 500  # of several at once: each is a field of the page that asks


def _test(protocol: str) -> Callable[[AgentEmailAccount, Mapping[str, Any], str], Done]:
    def start(account: AgentEmailAccount, given: Mapping[str, Any], by: str) -> Done:
        try:
            test = diagnose.start_test(
                account,
                protocol,
                by,
                sends_to_self=bool(given.get("sends_to_self")),
                is_one_of_many=bool(given.get("is_one_of_many")),
            )
        except diagnose.TooManyTests as refused:
            return Done(str(refused), is_done=False)
        url = reverse("admin:gobii_email_connectiontest_change", args=[test.pk])
        return Done("The test has begun.", url)

    return start


def _pause(account: AgentEmailAccount, given: Mapping[str, Any], by: str) -> Done:
    reason, until = f"{given['reason']} (paused by {by})", given["until"]
    hold.pause(account, reason=reason, until=until)
    span = f"until {until:%Y-%m-%d %H:%M} UTC" if until else "until it is resumed"
    return Done(f"Paused {span}. Its mail waits. Reason: {given['reason']}")


def _resume(account: AgentEmailAccount, _: Mapping[str, Any], by: str) -> Done:
    return Done(f"Resumed; messages that were waiting: {hold.resume(account)}.")


def _clear(account: AgentEmailAccount, _: Mapping[str, Any], by: str) -> Done:
    return Done(f"Backoff cleared; messages that were waiting: {hold.clear_backoff(account)}.")


def _poll(account: AgentEmailAccount, _: Mapping[str, Any], by: str) -> Done:
    if not poll_now(account):
        return Done("Receiving is switched off for the mailbox.", is_done=False)
    return Done("It is read as soon as a worker is free.")


ACTS = {
    act.name: act
    for act in (
        MailboxAct(
            "test_smtp",
            "Test SMTP",
            "Connect to the server for sending, sign in and name the sender? No message is sent, unless you"
            " ask for one below.",
            _test("smtp"),
            TestForm,
            most=diagnose.AT_ONCE,
        ),
        MailboxAct(
            "test_imap",
            "Test IMAP",
            "Connect to the server for receiving, sign in and open the folder? Nothing is read or changed.",
            _test("imap"),
            most=diagnose.AT_ONCE,
        ),
        MailboxAct(
            "poll",
            "Poll now",
            "Read what is new in the mailbox as soon as a worker is free, whatever it waits for?",
            _poll,
        ),
        MailboxAct("pause", "Pause", "Stop sending? What is submitted meanwhile waits.", _pause, PauseForm),
        MailboxAct(
            "resume",
            "Resume",
            "End the pause or hold, whatever its reason, and let the mail go? Where the server still refuses,"
            " it is held again.",
            _resume,
        ),
        MailboxAct(
            "clear_backoff",
            "Clear backoff",
            "Stop waiting for the server's limit or for its server to recover, and try again now?"
            " All mailboxes at that server are taken up again. Pauses and holds that wait for a person stay.",
            _clear,
        ),
    )
}


def acts_for(account: AgentEmailAccount) -> Iterator[MailboxAct]:
    """Those that make sense now."""
    is_active = account.state_at(timezone.now()) == AgentEmailAccount.State.ACTIVE
    yield ACTS["test_smtp"]
    if account.imap_host:
        yield ACTS["test_imap"]
    if account.is_inbound_enabled:
        yield ACTS["poll"]
    yield ACTS["pause" if is_active else "resume"]
    yield ACTS["clear_backoff"]


def perform(
    act: MailboxAct, account: AgentEmailAccount, form: forms.Form, *, by: str, is_one_of_many: bool = False
) -> Done:
    """Does it with what the valid `form` says."""
    return act.do(account, form.cleaned_data | {"is_one_of_many": is_one_of_many}, by)


def confirmation(
    request: HttpRequest,
    act: MailboxAct,
    accounts: Sequence[AgentEmailAccount],
    form: forms.Form,
    context: Mapping[str, Any],
) -> HttpResponseBase:
    """The page that asks; 422 when what was typed into it is not accepted."""
    facts = {"act": act, "accounts": accounts, "form": form, "now": timezone.now()}
    status = 422 if form.errors else 200
    return TemplateResponse(
        request, "admin/gobii_email/mailbox_act.html", {**context, **facts}, status=status
    )
