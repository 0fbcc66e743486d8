"""Postmark's tracking webhook: Anymail's reading of it behind a secret that is required.

Postmark signs nothing, so HTTP Basic is all there is; without POSTMARK_WEBHOOK_SECRET nothing is read. What
an event means is left to services/track. Answers follow Postmark's rule: 200 ends it, else it comes again.
"""

import json
import logging
from collections.abc import Callable

from anymail.signals import AnymailTrackingEvent
from anymail.utils import get_request_basic_auth
from anymail.webhooks.postmark import PostmarkTrackingWebhookView
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from django.utils.crypto import constant_time_compare

from gobii_email.conf import config
from gobii_email.services.prove import StillSending

logger = logging.getLogger(__name__)

MAX_BYTES = 1_000_000


class TrackingWebhook(PostmarkTrackingWebhookView):  # type: ignore[misc]
    """`POST /anymail/postmark/tracking/`. Nothing is read of a request without the secret."""

    warn_if_no_basic_auth = False  # stricter than that: see dispatch

    def dispatch(self, request: HttpRequest, *args: object, **named: object) -> HttpResponseBase:
        if not _is_authentic(request):
            return HttpResponse("Forbidden.\n", status=403)
        response: HttpResponseBase = super().dispatch(request, *args, **named)
        return response

    def post(self, request: HttpRequest, *args: object, **named: object) -> HttpResponse:
        if _declared_bytes(request) > MAX_BYTES or len(request.body) > MAX_BYTES:
            return HttpResponse("Too large.\n", status=413)
        try:
            event = self._event(request.body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return HttpResponse("Not a Postmark event.\n", status=400)
        if event is None:
            return HttpResponse()
        try:
            self.signal.send(sender=type(self), event=event, esp_name=self.esp_name)
        except StillSending:
            return HttpResponse("Too early; tell it again.\n", status=503)
        return HttpResponse()

    def _event(self, body: bytes) -> AnymailTrackingEvent | None:
        """The normalised event; None for kinds that have no meaning here. Raises when it is none at all."""
        told = json.loads(body.decode("utf-8"))
        if not isinstance(told, dict):
            raise TypeError("an event is an object")
        kind = told.get("RecordType")
        if kind not in self.event_record_types or kind == "Inbound":
            logger.info("tracking.unknown_kind")
            return None
        return self.esp_to_anymail_event(told)


def _is_authentic(request: HttpRequest) -> bool:
    """Whether the request presents a configured `user:password`; while one replaces another, both stand
    on lines of their own."""
    presented = get_request_basic_auth(request)
    configured = config().postmark_webhook_secret.reveal().splitlines()
    allowed = [secret for secret in configured if secret.partition(":")[2]]
    return presented is not None and any(constant_time_compare(presented, secret) for secret in allowed)


def _declared_bytes(request: HttpRequest) -> int:
    declared = request.META.get("CONTENT_LENGTH") or "0"
    return int(declared) if declared.isdecimal() else 0


tracking: Callable[..., HttpResponseBase] = TrackingWebhook.as_view()
tracking.csrf_exempt = True  # type: ignore[attr-defined]
tracking.login_required = False  # type: ignore[attr-defined]

urlpatterns = [path("postmark/tracking/", tracking, name="postmark_tracking")]
