"""What became of each message: read-only pages, and the three things a person may do about one.

Retry, cancel and resolve ask first (GET) and act on POST, through services/intervene. A body is written
by somebody else: it is shown in a frame without scripts, forms, network or our origin.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Lower
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.views.decorators.clickjacking import xframe_options_sameorigin

from gobii_email.admin.newest import SEARCHED, NewestAdmin
from gobii_email.admin.pages import OwnPages, ReadOnly
from gobii_email.domain.addresses import normalise
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import (
    FrozenMessage,
    OutboundMessageAttempt,
    OutboundMessageRecipient,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services import intervene, preview
from gobii_email.services.act import ACTS, Act, acts_for, perform
from gobii_email.services.status import delivery_status

MOST_NAMED = 1_000
"""Of the messages that one search term names, the newest so many are shown."""


def searched_back_to(before: datetime | None) -> datetime | None:
    """When the newest `SEARCHED` messages (until `before`) begin; None where there are no more."""
    rows = PersistentAgentMessage.objects.order_by("-timestamp")
    rows = rows if before is None else rows.filter(timestamp__lte=before)
    edge: datetime | None = rows.values_list("timestamp", flat=True)[SEARCHED : SEARCHED + 1].first()
    return edge


def messages_named(term: str) -> set[UUID]:
    """The messages that `term` names whole: an id, Message-ID, queue id, or somebody's address.

    Each is found by an index, and of many the newest.
    """
    addresses, bare = {term, normalise(term)}, term.strip("<>")
    own = PersistentAgentCommsEndpoint.objects.alias(lower=Lower("address")).filter(
        owner_agent__isnull=False, lower__in=addresses
    )
    attempts = OutboundMessageAttempt.objects.order_by()
    messages = PersistentAgentMessage.objects.order_by()
    queued_there = attempts.filter(provider_message_id=term).exclude(provider_message_id="")
    asked = [
        messages.filter(rfc_message_id__in=[bare, f"<{bare}>"]).values_list("pk"),
        queued_there.values_list("message_id"),
        OutboundMessageRecipient.objects.filter(address__in=addresses)
        .order_by("-id")
        .values_list("message_id"),
        attempts.filter(from_endpoint__in=list(own[:2]))
        .order_by(F("sent_at").desc(nulls_first=True))
        .values_list("message_id"),
    ]
    keys = {key for rows in asked for (key,) in rows[:MOST_NAMED]}
    if (key := as_uuid(term)) is not None:
        keys |= {key, *attempts.filter(pk=key).values_list("message_id", flat=True)}
    return keys


def as_uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


class ProviderFilter(admin.SimpleListFilter):
    title = "provider"
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [(str(provider), str(provider).replace("_", " ")) for provider in Provider]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        attempts = OutboundMessageAttempt.objects.filter(message=OuterRef("pk"), provider=self.value())
        return queryset.filter(Exists(attempts))


@admin.register(PersistentAgentMessage)
class MessageAdmin(ReadOnly, OwnPages, NewestAdmin):
    """What is named in full is found by an index; parts of a subject are looked for in the newest alone."""

    newest = ("timestamp", "pk")
    list_display = [
        "subject_shown",
        "direction",
        "from_address",
        "first_recipient",
        "latest_status",
        "provider",
        "timestamp",
    ]
    list_filter = ["latest_status", ProviderFilter, "timestamp", "is_outbound"]
    search_fields = ["subject", "from_address"]
    search_help_text = (
        "An address, Message-ID, id or the server's queue id in full;"
        f" or parts of subject or sender, looked for in the newest {SEARCHED:,} messages"
    )
    change_form_template = "admin/gobii_email/persistentagentmessage/change_form.html"
    fields = [
        "latest_status",
        "from_address",
        "owner_agent",
        "rfc_message_id",
        "in_reply_to",
        "submitted_at",
        "latest_sent_at",
        "expires_at",
        "on_doubt",
    ]
    readonly_fields = ["in_reply_to"]

    class Media:
        css = {"all": ["gobii_email/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[PersistentAgentMessage]:
        latest = OutboundMessageAttempt.objects.filter(message=OuterRef("pk")).order_by("-number")
        first = OutboundMessageRecipient.objects.filter(message=OuterRef("pk")).order_by("pk")
        many = (
            OutboundMessageRecipient.objects.filter(message=OuterRef("pk"))
            .order_by()
            .values("message")
            .annotate(count=Count("pk"))
        )
        rows = super().get_queryset(request).defer("body", "raw_payload", "content_hash")
        return rows.annotate(
            latest_provider=Subquery(latest.values("provider")[:1]),
            first_address=Subquery(first.values("address")[:1]),
            recipient_count=Subquery(many.values("count")),
            to_address=F("to_endpoint__address"),
        )

    def edge(self, before: datetime | None) -> datetime | None:
        return searched_back_to(before)

    def mentioning(self, word: str) -> Q:
        return Q(subject__icontains=word) | Q(from_address__icontains=word)

    def named_by(self, term: str) -> set[UUID]:
        return messages_named(term)

    @admin.display(description="subject")
    def subject_shown(self, message: PersistentAgentMessage) -> str:
        return message.subject[:80] or "(no subject)"

    @admin.display(description="direction")
    def direction(self, message: PersistentAgentMessage) -> str:
        return "sent" if message.is_outbound else "received"

    @admin.display(description="to")
    def first_recipient(self, message: PersistentAgentMessage) -> str:
        if not message.is_outbound:
            return str(message.to_address or "–")
        others = (message.recipient_count or 0) - 1
        return f"{message.first_address or '–'}{f' and {others} more' if others > 0 else ''}"

    @admin.display(description="provider")
    def provider(self, message: PersistentAgentMessage) -> str:
        return str(message.latest_provider or "–").replace("_", " ")

    @admin.display(description="in reply to")
    def in_reply_to(self, message: PersistentAgentMessage) -> str:
        if message.parent_id is None:
            return "–"
        return format_html('<a href="{}">{}</a>', self.url_of("change", message.parent_id), message.parent_id)

    # The page of one message

    def get_urls(self) -> list[URLPattern]:
        acts = [
            self.page(f"{name}/", self._act_view(act), name.replace("-", "_"), "GET", "POST")
            for name, act in ACTS.items()
        ]
        body = self.page("body/", xframe_options_sameorigin(self.body_view), "body", "GET", "HEAD")
        return [*acts, body, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        message = options.get("obj")
        if message is not None:
            frozen = FrozenMessage.objects.filter(message=message).first()
            may_act = request.user.has_perm("gobii_email.change_persistentagentmessage")
            context |= {
                "report": delivery_status(message),
                "frozen": frozen,
                "raw_headers": preview.raw_headers(frozen) if frozen else "",
                "attachments": message.attachments.all(),
                "has_html": frozen is not None or bool((message.raw_payload or {}).get("chat_body_html_v1")),
                "received_mails": message.received_mails.only("pk", "folder", "uid"),
                "body_url": self.url_of("body", message.pk),
                "acts": [
                    (act, self.url_of(act.name.replace("-", "_"), message.pk))
                    for act in (acts_for(message) if may_act else ())
                ],
            }
        return super().render_change_form(request, context, **options)

    def body_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The HTML in a document of its own that can do nothing, for the frame of the message's page."""
        message = self.object_or_404(request, object_id)
        if not self.has_view_permission(request, message):
            raise Http404
        document = preview.document_of(message)
        if document is None:
            raise Http404
        headers = {"Content-Security-Policy": document.policy, "Referrer-Policy": "no-referrer"}
        return HttpResponse(document.html, headers=headers)

    def _act_view(self, act: Act) -> Any:
        def view(request: HttpRequest, object_id: str) -> HttpResponseBase:
            self.require(request, "change_persistentagentmessage")
            message = self.object_or_404(request, object_id)
            if request.method == "POST":
                return self._do(request, act, message)
            context = self.page_context(request, message, f"{act.button}?")
            return TemplateResponse(
                request,
                "admin/gobii_email/persistentagentmessage/confirm.html",
                context | {"act": act, "media": self.media},
            )

        return view

    def _do(self, request: HttpRequest, act: Act, message: PersistentAgentMessage) -> HttpResponseBase:
        try:
            text = perform(
                act, message, by=request.user.get_username(), default_transport="default" in request.POST
            )
        except intervene.NotPossible as refused:
            messages.error(request, str(refused))
        else:
            self.log_change(request, message, f"{act.button}: {text}")
            messages.success(request, text)
        return redirect(self.url_of("change", message.pk))


class StageFilter(admin.SimpleListFilter):
    title = "stage"
    parameter_name = "stage"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [(str(stage), str(stage)) for stage in Stage]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(stage=self.value())


@admin.register(OutboundMessageAttempt)
class AttemptAdmin(ReadOnly, OwnPages, NewestAdmin):
    """In the order of their messages, which is indexed; of one message, the latest first."""

    newest = ("message__timestamp", "number", "pk")
    list_display = ["attempt", "status", "provider", "reply_shown", "queued_at", "finished_at"]
    list_filter = ["status", "provider", "queued_at", StageFilter]
    list_select_related = ["message"]
    search_fields = ["message__subject", "message__from_address"]
    search_help_text = MessageAdmin.search_help_text
    fields = [
        "message_link",
        "number",
        "status",
        "provider",
        "provider_message_id",
        "addresses",
        "stage",
        "verdict",
        "scope",
        "smtp_code",
        "enhanced_status",
        "reply",
        "error_code",
        "error_message",
        "queued_at",
        "not_before",
        "started_at",
        "marked_at",
        "finished_at",
        "due_at",
        "held_reason",
        "lease_owner",
        "stage_ms",
        "tls",
        "peer_address",
    ]
    readonly_fields = ["message_link", "lease_owner"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboundMessageAttempt]:
        return super().get_queryset(request).defer("message__body", "message__raw_payload")

    def edge(self, before: datetime | None) -> datetime | None:
        return searched_back_to(before)

    def mentioning(self, word: str) -> Q:
        return Q(message__subject__icontains=word) | Q(message__from_address__icontains=word)

    def named_by(self, term: str) -> set[UUID]:
        rows = OutboundMessageAttempt.objects.filter(message__in=messages_named(term)).order_by()
        return set(rows.values_list("pk", flat=True))

    @admin.display(description="attempt")
    def attempt(self, attempt: OutboundMessageAttempt) -> str:
        return f"{attempt.number} of “{attempt.message.subject[:60] or attempt.message_id}”"

    @admin.display(description="what was said")
    def reply_shown(self, attempt: OutboundMessageAttempt) -> str:
        return (attempt.error_message or attempt.reply)[:100] or "–"

    @admin.display(description="message")
    def message_link(self, attempt: OutboundMessageAttempt) -> str:
        url = reverse("admin:gobii_email_persistentagentmessage_change", args=[attempt.message_id])
        return format_html('<a href="{}">{}</a>', url, attempt.message)
