"""Pages of mailboxes: the list, one mailbox with its settings and its tests, and what may be done about it.

What was typed into a form that came too late is kept, passwords apart, and shown beside what is stored now.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages as notices
from django.contrib.admin.models import DELETION
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.debug import sensitive_post_parameters

from gobii_email.console import audit, connecting
from gobii_email.console.access import page, require_right
from gobii_email.console.forms import LIMITS, SIDES, PauseForm, ReasonForm, SettingsForm
from gobii_email.domain.addresses import normalise, one_line
from gobii_email.domain.classification import AccountState
from gobii_email.domain.providers import provider_of_host
from gobii_email.models import AgentEmailAccount, ConnectionTest, Mailbox, MailHost
from gobii_email.services import accounts as services
from gobii_email.services import allow, authorize, browse, diagnose, hold, suppress
from gobii_email.services import disconnect as disconnecting
from gobii_email.services.accounts import InvalidAccount
from gobii_email.services.authorize import AuthorizationRefused
from gobii_email.services.browse import Whose
from gobii_email.services.gate import obstacle_to_mailbox
from gobii_email.services.guard import SETTINGS, STATE, ChangedMeanwhile, account_version, unchanged
from gobii_email.services.poll_schedule import poll_now

TESTS_SHOWN = 10
SUPPRESSED_SHOWN = 50

_CHANGED = "It was changed elsewhere since this page was shown, so nothing was done. "
_CHANGED_SETTINGS = (
    _CHANGED + "What you typed is still here, passwords apart: compare, enter the password again, and save."
)
_CHANGED_STATE = _CHANGED + "Look at how it stands now, and decide again."
DIRECTIONS = {"outbound": "Sending", "inbound": "Receiving"}


@page()
def accounts(request: HttpRequest, whose: Whose) -> HttpResponse:
    now, start = timezone.now(), request.GET.get("from", "")
    if not start.isprintable():
        raise Http404
    rows, after = browse.accounts(whose, start)
    used = browse.limits_used(rows, now)
    context = {
        "rows": [{"account": row, "state": row.state_at(now), "used": used[row.pk]} for row in rows],
        "after": after,
    }
    return render(request, "console/accounts.html", context)


@page()
def account(request: HttpRequest, whose: Whose, pk: UUID) -> HttpResponse:
    return _shown(request, _account(whose, pk))


def _account(whose: Whose, pk: UUID) -> AgentEmailAccount:
    found = whose.accounts().filter(pk=pk).first()
    if found is None:
        raise Http404
    return found


def _shown(
    request: HttpRequest, found: AgentEmailAccount, *, status: int = 200, **others: object
) -> HttpResponse:
    response = render(request, "console/account.html", _context(found) | others, status=status)
    return connecting.with_sign_in(response)


def _context(found: AgentEmailAccount) -> dict[str, Any]:
    now = timezone.now()
    tests = [test.as_of(now) for test in ConnectionTest.objects.filter(account=found)[:TESTS_SHOWN]]
    provider = provider_of_host(found.smtp_host) if found.smtp_host else None
    return {
        "account": found,
        "state": found.state_at(now),
        "is_active": found.state_at(now) is AccountState.ACTIVE,
        "settings": SettingsForm(
            instance=found, initial={"version": account_version(found, SETTINGS)}, auto_id="set-%s"
        ),
        "state_version": account_version(found, STATE),
        "pause": PauseForm(auto_id="pause-%s"),
        "reason": ReasonForm(auto_id="reason-%s"),
        "used": browse.limits_used([found], now)[found.pk],
        "limits": allow.limits_in_force(found, now),
        "waiting": browse.waiting(found),
        "mailbox": Mailbox.objects.filter(account=found).first(),
        "host": MailHost.objects.filter(name=found.smtp_server_name, backoff_until__gt=now).first(),
        "credential": getattr(found, "oauth_credential", None),
        "provider": provider,
        "sign_in": provider.oauth if provider and provider.oauth in authorize.configured_providers() else "",
        "sides": _sides(found, tests),
        "tests": tests,
        "is_testing": any(test.finished_at is None for test in tests),
        "obstacle": obstacle_to_mailbox(found, now),
        "notes": audit.notes_about(found, found.endpoint),
        **_suppressed(found),
    }


def _suppressed(found: AgentEmailAccount) -> dict[str, Any]:
    rows = list(suppress.in_force(found.endpoint)[: SUPPRESSED_SHOWN + 1])
    return {"suppressed": rows[:SUPPRESSED_SHOWN], "more_suppressed": len(rows) > SUPPRESSED_SHOWN}


def _sides(found: AgentEmailAccount, tests: list[ConnectionTest]) -> list[dict[str, Any]]:
    """Both directions: whether they are set up, tested and on, and how the latest test stands."""
    facts = {
        "smtp": ("outbound", found.is_smtp_tested, found.is_outbound_enabled, found.smtp_error),
        "imap": ("inbound", found.is_imap_tested, found.is_inbound_enabled, found.imap_error),
    }
    return [
        {
            "protocol": protocol,
            "title": title,
            "direction": facts[protocol][0],
            "is_set": bool(getattr(found, f"{protocol}_host")),
            "is_tested": facts[protocol][1],
            "is_enabled": facts[protocol][2],
            "error": facts[protocol][3],
            "last_ok_at": getattr(found, f"{protocol}_last_ok_at"),
            "test": next((test for test in tests if test.protocol == protocol), None),
        }
        for protocol, title in SIDES.items()
    ]


# What may be done

_Act = Callable[[HttpRequest, AgentEmailAccount], HttpResponse]


def _act(act: _Act) -> Any:
    """A view that changes a mailbox, for its owner and for staff with the right to."""

    @sensitive_post_parameters()
    def view(request: HttpRequest, whose: Whose, pk: UUID) -> HttpResponse:
        found = _account(whose, pk)
        agent = found.endpoint.owner_agent
        require_right(request, "change_agentemailaccount", agent and agent.user_id)
        try:
            return act(request, found)
        except ChangedMeanwhile:
            return _shown(request, _account(whose, pk), status=409, problem=_CHANGED_STATE, **_typed(request))

    view.__name__ = act.__name__
    return page("POST")(view)


def _done(request: HttpRequest, found: AgentEmailAccount, what: str, reason: str = "") -> HttpResponse:
    audit.note(request, found, what, reason)
    notices.success(request, what)
    return redirect("console:account", pk=found.pk)


@_act
def save(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    form = SettingsForm(request.POST, instance=found, auto_id="set-%s")
    if not form.is_valid():
        return _shown(request, found, status=422, settings=form)
    try:
        with unchanged(found.pk, SETTINGS, form.cleaned_data["version"]) as fresh:
            changed = services.edit_account(
                fresh,
                form.changes(),
                smtp_password=form.password("smtp"),
                imap_password=form.password("imap"),
            )
            services.save_account(fresh, changed)
    except InvalidAccount as wrong:
        form.complain(wrong)
        return _shown(request, found, status=422, settings=form)
    except ChangedMeanwhile:
        return _stale(request, found)
    if not changed:
        notices.info(request, "Nothing was different, so nothing was changed.")
        return redirect("console:account", pk=found.pk)
    return _done(request, fresh, f"Changed {_named(changed)}.{_what_next(fresh)}")


def _what_next(account: AgentEmailAccount) -> str:
    is_set_and_tested = (
        (account.smtp_host, account.is_smtp_tested),
        (account.imap_host, account.is_imap_tested),
    )
    return " Test it now." if any(host and not is_tested for host, is_tested in is_set_and_tested) else ""


def _named(changed: frozenset[str]) -> str:
    """The changed settings by name, and none of their values."""
    told = sorted(name.removesuffix("_encrypted").replace("_", " ") for name in changed)
    return ", ".join(told)


def _stale(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """What was typed, against what is stored now; saving it again is then a decision."""
    found.refresh_from_db()
    typed = request.POST.copy()
    typed["version"] = account_version(found, SETTINGS)
    form = SettingsForm(typed, instance=found, auto_id="set-%s")
    form.is_valid()
    differences = [
        {"label": _label(form[name]), "stored": form[name].initial, "typed": form[name].value()}
        for name in form.changes()
    ]
    context = {"settings": form, "problem": _CHANGED_SETTINGS, "differences": differences}
    return _shown(request, found, status=409, **context)


def _label(field: forms.BoundField) -> str:
    side = SIDES.get(field.name.partition("_")[0])
    return f"{side}: {field.label}" if side and field.name not in LIMITS else str(field.label)


@_act
def pause(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    form = PauseForm(request.POST, auto_id="pause-%s")
    if not form.is_valid():
        return _shown(request, found, status=422, pause=form)
    reason, until = form.cleaned_data["reason"], form.until()
    with unchanged(found.pk, STATE, request.POST.get("version", "")) as fresh:
        hold.pause(fresh, reason=f"Paused by {request.user.get_username()}: {reason}", until=until)
    span = f"until {until:%Y-%m-%d %H:%M} UTC" if until else "until somebody resumes it"
    return _done(request, found, f"Paused {span}. Its mail waits.", reason)


@_act
def resume(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    with unchanged(found.pk, STATE, request.POST.get("version", "")) as fresh:
        waiting = hold.resume(fresh)
    return _done(request, found, f"Resumed; messages that were waiting: {waiting}.", _reason(request))


def _typed(request: HttpRequest) -> dict[str, forms.Form]:
    """The reason that was given, in whichever form the page has now."""
    values = {name: request.POST.get(name, "") for name in ("reason", "length")}
    return {
        "pause": PauseForm(initial=values, auto_id="pause-%s"),
        "reason": ReasonForm(initial=values, auto_id="reason-%s"),
    }


def _reason(request: HttpRequest) -> str:
    return one_line(request.POST.get("reason", ""))[: audit.MAX_REASON_CHARACTERS]


@_act
def switch(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """One direction on or off."""
    direction, is_on = request.POST.get("direction", ""), request.POST.get("to") == "on"
    if direction not in DIRECTIONS:
        raise Http404
    change = services.enable if is_on else services.disable
    try:
        with unchanged(found.pk, STATE, request.POST.get("version", "")) as fresh:
            change(fresh, **{direction: True})
    except InvalidAccount as wrong:
        problem = " ".join(f"{one.reason} {one.remedy}".strip() for one in wrong.problems)
        return _shown(request, found, status=422, problem=problem)
    word = "enabled" if is_on else "disabled; its mail waits"
    if direction == "inbound":
        word = "enabled" if is_on else "disabled"
    return _done(request, found, f"{DIRECTIONS[direction]} is {word}.", _reason(request))


@_act
def test(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """Begins a test; the page of the mailbox shows its steps as they end."""
    protocol = request.POST.get("protocol", "")
    if protocol not in SIDES:
        raise Http404
    try:
        diagnose.start_test(
            found, protocol, request.user.get_username(), sends_to_self="to_self" in request.POST
        )
    except diagnose.TooManyTests as refused:
        return _shown(request, found, status=429, problem=str(refused))
    audit.note(request, found, f"Test of {SIDES[protocol]} begun.")
    return redirect(f"{reverse('console:account', args=[found.pk])}#tests")


@_act
def lift(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """Lets an address be written to again."""
    address = normalise(one_line(request.POST.get("address", "")))
    rows = suppress.in_force(found.endpoint).filter(address=address)
    if not suppress.lift(rows, by=request.user.get_username()):
        raise ChangedMeanwhile
    return _done(request, found, f"Mail to {address} is allowed again.", _reason(request))


@_act
def poll(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """Has the mailbox read as soon as a worker is free, whatever it waits for."""
    if not poll_now(found):
        return _shown(request, found, status=422, problem="Receiving is switched off; enable it first.")
    return _done(request, found, "It is read as soon as a worker is free.")


@_act
def connect(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    """To the provider, to sign in to this mailbox (again)."""
    try:
        return redirect(connecting.begin(request, found, request.POST.get("provider", "")))
    except AuthorizationRefused as refused:
        return _shown(request, found, status=422, problem=str(refused))


@_act
def disconnect(request: HttpRequest, found: AgentEmailAccount) -> HttpResponse:
    return _done(request, found, disconnecting.disconnect(found).text, _reason(request))


@page("GET", "HEAD", "POST")
def delete(request: HttpRequest, whose: Whose, pk: UUID) -> HttpResponse:
    """Asks first. The endpoint and the history of its messages stay; the secrets go."""
    found = _account(whose, pk)
    agent = found.endpoint.owner_agent
    require_right(request, "delete_agentemailaccount", agent and agent.user_id)
    context = {"account": found, "version": account_version(found, STATE), "reason": ReasonForm()}
    context["waiting"] = browse.waiting(found)
    if request.method != "POST":
        return render(request, "console/delete.html", context)
    try:
        with unchanged(pk, STATE, request.POST.get("version", "")) as fresh:
            audit.note(request, fresh, "Removed with its secrets.", _reason(request), flag=DELETION)
            services.delete(fresh)
    except ChangedMeanwhile:
        context |= {"problem": _CHANGED_STATE, "reason": ReasonForm(request.POST)}
        return render(request, "console/delete.html", context, status=409)
    notices.success(request, f"The mailbox {found.endpoint.address} is removed, and its secrets with it.")
    return redirect("console:accounts")
