"""Signing in: as in Django, but only so often; the admin's form is held to the same.

What is counted is decided in services/throttle. Whose address it is behind proxies is read here.
"""

from ipaddress import ip_address
from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.urls import reverse_lazy

from gobii_email.conf import config
from gobii_email.services import throttle


def client_address(request: HttpRequest) -> str:
    """Where the request comes from, as far as can be believed; "" behind a proxy that nobody told us of."""
    peer = str(request.META.get("REMOTE_ADDR", ""))
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",")]
    proxies = config().proxies
    if proxies:
        return forwarded[-proxies] if len(forwarded) >= proxies else peer
    return "" if any(forwarded) and _is_near(peer) else peer


def _is_near(peer: str) -> bool:
    try:
        return ip_address(peer).is_private
    except ValueError:
        return True  # a socket file


class _Counted:
    """A form that asks for user name and password, and looks at them only so often."""

    is_throttled = False

    def clean(self) -> Any:
        form: Any = self
        given, request = form.cleaned_data, form.request
        if not (given.get("username") and given.get("password")) or request is None:
            return super().clean()  # type: ignore[misc]
        try:
            sign_in = throttle.begin(given["username"], client_address(request))
        except throttle.TooManySignIns as refused:
            self.is_throttled = True
            raise forms.ValidationError(str(refused)) from None
        found = super().clean()  # type: ignore[misc]
        throttle.succeeded(sign_in)
        return found


class SignInForm(_Counted, AuthenticationForm):
    pass


class AdminSignInForm(_Counted, AdminAuthenticationForm):
    pass


class SignIn(LoginView):
    authentication_form = SignInForm
    template_name = "console/login.html"
    redirect_authenticated_user = True
    next_page = reverse_lazy("console:overview")

    def form_invalid(self, form: Any) -> HttpResponse:
        response = super().form_invalid(form)
        if form.is_throttled:
            response.status_code = 429
        return response
