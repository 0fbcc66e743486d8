"""The page of one message that was received: who wrote it, how far that is proven, and what it says."""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render

from gobii_email.models import PersistentAgentMessage, ReceivedMail
from gobii_email.services import preview
from gobii_email.services.status import delivery_status

VIEWS = {"story": "Story", "text": "Text", "html": "HTML", "headers": "Headers", "raw": "Raw"}
_READS = {"headers": preview.received_headers, "raw": preview.received_raw}


def show(request: HttpRequest, row: PersistentAgentMessage, view: str) -> HttpResponse:
    if view not in VIEWS:
        raise Http404
    payload = row.raw_payload or {}
    context = {
        "message": row,
        "report": delivery_status(row),
        "payload": payload,
        "provenance": payload.get("provenance") or {},
        "copies": row.cc_endpoints.all()[:20],
        "attachments": row.attachments.only("filename", "content_type", "file_size"),
        "parent": row.parent,
        "has_html": bool(payload.get("chat_body_html_v1")),
        "views": VIEWS,
        "view": view,
        **_content(row, view),
    }
    return render(request, "console/received.html", context)


def _content(row: PersistentAgentMessage, view: str) -> dict[str, Any]:
    """What the chosen view shows; the bytes are read only where they are shown."""
    if view == "text":
        whole = row.body
    elif view in _READS:
        raw = ReceivedMail.objects.filter(message=row).values_list("raw", flat=True).first()
        whole = _READS[view](bytes(raw)) if raw else ""
    else:
        return {}
    shown = preview.beginning(whole)
    return {"content": shown, "is_cut": len(shown) < len(whole) or view == "raw"}
