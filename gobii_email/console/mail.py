"""Pages of messages: the list, one message, the frame with its HTML, and what may be done about it."""

from typing import Any
from uuid import UUID

from django.contrib import messages as notices
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.views.decorators.clickjacking import xframe_options_sameorigin

from gobii_email.console import audit, received
from gobii_email.console.access import page, require_right
from gobii_email.console.forms import FilterForm, ReasonForm
from gobii_email.domain.advice import ADVICE
from gobii_email.domain.lifecycle import MessageStatus, Provider
from gobii_email.models import FrozenMessage, OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services import act, browse, preview
from gobii_email.services.browse import Wanted, Whose
from gobii_email.services.guard import message_version
from gobii_email.services.intervene import NotPossible
from gobii_email.services.status import DeliveryStatus, delivery_status, is_over

VIEWS = {
    "story": "Timeline",
    "recipients": "Recipients",
    "text": "Text",
    "html": "HTML",
    "headers": "Headers",
    "raw": "Raw",
}
FIRST_RECIPIENTS, RECIPIENTS_OF_A_PAGE = 50, 250
LAST_EVENTS, LAST_ATTEMPTS = 100, 20
_CHANGED = (
    "It changed since this page was shown: it is {status} now. Nothing was done; look again and decide."
)


@page()
def messages(request: HttpRequest, whose: Whose) -> HttpResponse:
    form = FilterForm(request.GET, whose)
    form.is_valid()
    found = _page(whose, form.wanted(), request)
    context = {
        "form": form,
        "page": found,
        "is_filtered": bool(_filters(request)),
        "older": _older(request, found),
    }
    return render(request, "console/messages.html", context, status=422 if form.errors else 200)


@page()
def simulation(request: HttpRequest, whose: Whose) -> HttpResponse:
    found = _page(whose, Wanted(transport=Provider.SIMULATION), request)
    return render(request, "console/simulation.html", {"page": found, "older": _older(request, found)})


def _page(whose: Whose, wanted: Wanted, request: HttpRequest) -> browse.Page:
    try:
        return browse.messages(whose, wanted, request.GET.get("from", ""))
    except ValueError:
        raise Http404 from None


def _filters(request: HttpRequest) -> QueryDict:
    filters = request.GET.copy()
    filters.pop("from", None)
    for name in [name for name, value in filters.items() if not value]:
        del filters[name]
    return filters


def _older(request: HttpRequest, found: browse.Page) -> str:
    if not found.older:
        return ""
    filters = _filters(request)
    filters["from"] = found.older
    return f"?{filters.urlencode()}"


# One message


@page()
def message(request: HttpRequest, whose: Whose, pk: UUID) -> HttpResponse:
    row = _message(whose.correspondence(), pk)
    view = request.GET.get("show", "story")
    if view not in VIEWS:
        raise Http404
    if not row.is_outbound:
        return received.show(request, row, view)
    context = _context(row, view, request.GET.get("from", ""))
    if request.headers.get("HX-Request") and request.GET.get("seen") == context["seen"]:
        return HttpResponse(status=204)
    return render(request, "console/message.html", context)


def _message(rows: QuerySet[PersistentAgentMessage], pk: UUID) -> PersistentAgentMessage:
    rows = rows.select_related("owner_agent", "from_endpoint__agentemailaccount", "to_endpoint")
    found = rows.defer("raw_payload", "body").filter(pk=pk).first()
    if found is None:
        raise Http404
    return found


def _context(row: PersistentAgentMessage, view: str, start: str = "") -> dict[str, Any]:
    report = delivery_status(row)
    frozen = FrozenMessage.objects.filter(message=row)
    return {
        "message": row,
        "report": report,
        "attempts": _attempts(row, report),
        "timeline": _timeline(report)[-LAST_EVENTS:],
        **_recipients(report, view, start),
        "is_over": is_over(report.status),
        "is_in_doubt": report.status == MessageStatus.IN_DOUBT,
        "acts": act.acts_for(row),
        "reason": ReasonForm(),
        "version": message_version(row, len(report.attempts)),
        "seen": f"{len(report.timeline)}.{report.status}.{report.waiting_for or ''}",
        "views": VIEWS,
        "view": view,
        "attachments": list(row.attachments.only("filename", "content_type", "file_size")),
        "notes": audit.notes_about(row),
        **_content(frozen, view),
    }


def _content(frozen: Any, view: str) -> dict[str, Any]:
    """What the chosen view shows; the bytes are read only where they are shown."""
    reads = {"text": _text, "headers": preview.raw_headers, "raw": preview.raw}
    if view not in reads:
        return {"frozen": frozen.only("size").first()}
    found = (frozen.only("text", "size") if view == "text" else frozen.defer("html", "text")).first()
    whole = reads[view](found) if found else ""
    shown = preview.beginning(whole)
    return {"frozen": found, "content": shown, "is_cut": len(shown) < len(whole) or view == "raw"}


def _text(frozen: FrozenMessage) -> str:
    return frozen.text


def _recipients(report: DeliveryStatus, view: str, start: str) -> dict[str, Any]:
    """The first recipients beside the story, or a page of them."""
    first = int(start) if start.isdecimal() and len(start) < 9 else 0
    size = RECIPIENTS_OF_A_PAGE if view == "recipients" else FIRST_RECIPIENTS
    last = first + size
    others = len(report.recipients) - last
    return {
        "recipients": report.recipients[first:last],
        "next": last if others > 0 else None,
        "others": others,
    }


def _attempts(row: PersistentAgentMessage, report: DeliveryStatus) -> list[dict[str, Any]]:
    """The attempts with how long each stage took, and what to do about what was answered."""
    rows = OutboundMessageAttempt.objects.filter(message=row)
    facts = {str(found.pk): found for found in rows.only("stage_ms", "tls", "peer_address")}
    return [
        {"report": told, "facts": facts[told.attempt_id], "advice": ADVICE.get(told.error_code, "")}
        for told in report.attempts[-LAST_ATTEMPTS:]
        if told.attempt_id in facts
    ]


def _timeline(report: DeliveryStatus) -> list[dict[str, Any]]:
    """What happened, each with how long after the thing before."""
    before = [None, *report.timeline[:-1]]
    return [
        {"entry": entry, "after": None if last is None else entry.at - last.at}
        for entry, last in zip(report.timeline, before, strict=False)
    ]


@page()
@xframe_options_sameorigin
def html(request: HttpRequest, whose: Whose, pk: UUID) -> HttpResponse:
    """The HTML in a document of its own that can do nothing, for the frame of the message's page."""
    document = preview.document_of(_message(whose.correspondence(), pk))
    if document is None:
        raise Http404
    headers = {"Content-Security-Policy": document.policy, "Referrer-Policy": "no-referrer"}
    return HttpResponse(document.html, headers=headers)


@page("POST")
def do(request: HttpRequest, whose: Whose, pk: UUID, name: str) -> HttpResponse:
    """One act about a message, if it still is as it was shown."""
    row = _message(whose.messages(), pk)
    require_right(request, "change_persistentagentmessage", row.owner_agent and row.owner_agent.user_id)
    wanted = act.ACTS.get(name)
    if wanted is None:
        raise Http404
    reason = ReasonForm(request.POST)
    if not reason.is_valid():
        return _refused(request, row, reason, "The reason is too long.", 422)
    if request.POST.get("version") != message_version(row, row.attempts.count()):
        return _refused(request, row, reason, _CHANGED.format(status=_word(row)), 409)
    try:
        done = act.perform(
            wanted, row, by=request.user.get_username(), default_transport="default" in request.POST
        )
    except NotPossible as refused:
        row.refresh_from_db(fields=["latest_status"])
        return _refused(request, row, reason, str(refused), 409)
    audit.note(request, row, f"{wanted.button}: {done}", reason.cleaned_data["reason"])
    notices.success(request, done)
    return redirect("console:message", pk=pk)


def _word(row: PersistentAgentMessage) -> str:
    return str(row.latest_status).replace("_", " ")


def _refused(
    request: HttpRequest, row: PersistentAgentMessage, reason: ReasonForm, text: str, status: int
) -> HttpResponse:
    """The page as it is now, with what was typed."""
    context = _context(row, "story") | {"reason": reason, "problem": text}
    return render(request, "console/message.html", context, status=status)
