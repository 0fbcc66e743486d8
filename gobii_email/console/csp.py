"""What pages may load and run: nothing but our own files, and no inline script or style anywhere.

A middleware for the console and the admin. A response that brings a policy of its own, such as the frame
of a mail, keeps it.
"""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, reverse

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; "
    "form-action {targets}"
)
_HEADER = "Content-Security-Policy"
_COVERED = ("console:overview", "admin:index")


def policy(*form_targets: str) -> str:
    """The policy of a page whose forms may also lead to the origins `form_targets`.

    Browsers hold a form's redirects to `form-action` too, so a sign-in elsewhere has to be named.
    """
    return _POLICY.format(targets=" ".join(["'self'", *form_targets]))


class ContentSecurityPolicy:
    """Sets the policy on every answer below the console's and the admin's addresses."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        if request.path.startswith(_covered_paths()):
            response.headers.setdefault(_HEADER, policy())
        return response


def _covered_paths() -> tuple[str, ...]:
    return tuple(path for name in _COVERED if (path := _path(name)) is not None)


def _path(name: str) -> str | None:
    """None where a host project does not serve these pages."""
    try:
        return reverse(name)
    except NoReverseMatch:
        return None
