"""What machines ask over HTTP: `/healthz`, `/readyz`, `/metrics`.

The first two are open and tell nobody more than yes or no; details and metrics are for whoever has
METRICS_TOKEN or is signed in as staff. The middleware answers before hosts and sessions are looked at, as
probes come to an address and not to a name; host projects may include the addresses alone.
"""

import json
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.http import require_safe

from gobii_email.services import expose, ready


def healthz(request: HttpRequest) -> HttpResponse:
    """That this process answers; asks nobody else."""
    return _text("ok\n")


def readyz(request: HttpRequest) -> HttpResponse:
    components = ready.readiness()
    is_ready = ready.is_ready(components)
    document: dict[str, object] = {"status": "ready" if is_ready else "not ready"}
    if _may_know(request):
        document["components"] = components
    response = HttpResponse(json.dumps(document) + "\n", "application/json", 200 if is_ready else 503)
    response["Cache-Control"] = "no-store"
    return response


def metrics(request: HttpRequest) -> HttpResponse:
    if not _may_know(request):
        response = _text("Ask with METRICS_TOKEN as a bearer token, or sign in as staff.\n", 401)
        response["WWW-Authenticate"] = "Bearer"
        return response
    response = HttpResponse(expose.exposition(), expose.CONTENT_TYPE)
    response["Cache-Control"] = "no-store"
    return response


def _may_know(request: HttpRequest) -> bool:
    if expose.is_token(request.headers.get("Authorization", "")):
        return True
    user = getattr(request, "user", None)
    return user is not None and user.is_active and user.is_staff


def _text(text: str, status: int = 200) -> HttpResponse:
    response = HttpResponse(text, "text/plain; charset=utf-8", status)
    response["Cache-Control"] = "no-store"
    return response


VIEWS = {f"/{view.__name__}": require_safe(view) for view in (healthz, readyz, metrics)}
urlpatterns = [path(address[1:], view) for address, view in VIEWS.items()]


class Probes:
    """The first middleware: answers machines at once, and leaves people's sessions to the views below."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        view = VIEWS.get(request.path_info)
        if view is None or ("Authorization" not in request.headers and request.COOKIES):
            return self._get_response(request)
        return view(request)
