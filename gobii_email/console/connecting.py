"""Adding a mailbox: from its address to the settings found for it, a sign-in or a password, and a test.

Also the way to a provider and back. What is found out, and whether a sign-in is good, is decided by
services/discover and services/authorize.
"""

from collections.abc import Mapping
from dataclasses import asdict
from urllib.parse import urlsplit

from django.contrib import messages as notices
from django.contrib.admin.models import ADDITION
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.debug import sensitive_post_parameters

from gobii_email.conf import config
from gobii_email.console import audit
from gobii_email.console.access import page, require_right
from gobii_email.console.csp import policy
from gobii_email.console.forms import AddressForm, ConnectForm
from gobii_email.domain.providers import Endpoint
from gobii_email.models import AgentEmailAccount, PersistentAgent
from gobii_email.services import authorize, diagnose
from gobii_email.services.accounts import InvalidAccount, Problem, apply_account
from gobii_email.services.authorize import AuthorizationRefused
from gobii_email.services.browse import Whose
from gobii_email.services.discover import Discovery, discover

_EXISTS = "This mailbox is here already; change it on its own page."
_SIGN_IN_NAMES = {"google": "Google", "microsoft": "Microsoft"}


@page()
def add(request: HttpRequest, whose: Whose) -> HttpResponse:
    """Asks for the address and whose it is."""
    if "address" not in request.GET:
        return render(request, "console/add.html", {"form": AddressForm(None, whose)})
    form = AddressForm(request.GET, whose)
    if not form.is_valid():
        return render(request, "console/add.html", {"form": form}, status=422)
    known = _known(whose, form.cleaned_data["address"])
    if known is not None:
        notices.info(request, _EXISTS)
        return redirect("console:account", pk=known.pk)
    return redirect(f"{reverse('console:add_found')}?{urlencode(form.cleaned_data)}")


def _known(whose: Whose, address: str) -> AgentEmailAccount | None:
    return whose.accounts().filter(endpoint__address__iexact=address).first()


@page("GET", "HEAD", "POST")
@sensitive_post_parameters()
def found(request: HttpRequest, whose: Whose) -> HttpResponse:
    """Shows what was found for the address; on POST, stores the mailbox and begins to test it."""
    given = request.POST if request.method == "POST" else request.GET
    who = AddressForm(given, whose)
    if not who.is_valid():
        return render(request, "console/add.html", {"form": who}, status=422)
    discovery = discover(who.cleaned_data["address"])
    form = _connect_form(request, discovery)
    if request.method != "POST" or not form.is_valid():
        return _shown(request, who, discovery, form, status=422 if form.errors else 200)
    try:
        account = _stored(request, whose, who, form.document())
    except InvalidAccount as wrong:
        form.complain(wrong)
        return _shown(request, who, discovery, form, status=422)
    begin_tests(request, account)
    return redirect(f"{reverse('console:account', args=[account.pk])}#tests")


def _connect_form(request: HttpRequest, discovery: Discovery) -> ConnectForm:
    options = {"is_confirmed": discovery.is_confirmed, "auto_id": "connect-%s"}
    if request.method == "POST":
        return ConnectForm(request.POST, **options)
    return ConnectForm(initial=_initial(discovery), **options)


def _initial(discovery: Discovery) -> Mapping[str, object]:
    servers: dict[str, Endpoint | None] = {"smtp": discovery.smtp, "imap": discovery.imap}
    values: dict[str, object] = {"username": discovery.username}
    for side, server in servers.items():
        if server is not None:
            values |= {f"{side}_{part}": value for part, value in asdict(server).items()}
    return values


def _shown(
    request: HttpRequest,
    who: AddressForm,
    discovery: Discovery,
    form: ConnectForm,
    *,
    status: int = 200,
    **others: object,
) -> HttpResponse:
    provider = discovery.oauth_provider
    context = {
        "who": who.cleaned_data,
        "found": discovery,
        "form": form,
        "sign_in": provider if provider in authorize.configured_providers() else "",
        "sign_in_name": _SIGN_IN_NAMES.get(provider, provider),
        "takes_password": not discovery.auth or set(discovery.auth) & {"password", "app_password"},
    }
    response = render(request, "console/found.html", context | others, status=status)
    return with_sign_in(response)


def with_sign_in(response: HttpResponse) -> HttpResponse:
    """Lets the page's forms lead on to the providers that people can sign in with here."""
    settings = config()
    urls = [str(getattr(settings, f"{name}_authorize_url")) for name in authorize.configured_providers()]
    origins = {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in urls}
    if origins:
        response.headers["Content-Security-Policy"] = policy(*sorted(origins))
    return response


def _stored(
    request: HttpRequest, whose: Whose, who: AddressForm, document: Mapping[str, object]
) -> AgentEmailAccount:
    """A new mailbox of one of the user's agents. Raises InvalidAccount, and stores nothing then."""
    address = who.cleaned_data["address"]
    with transaction.atomic():
        if _known(whose, address) is not None:
            raise InvalidAccount([Problem("address", _EXISTS)])
        agent = _agent(request, whose, who)
        account = apply_account({"agent": str(agent.pk), "address": address, **document})
        audit.note(request, account, "Added.", flag=ADDITION)
    return account


def _agent(request: HttpRequest, whose: Whose, who: AddressForm) -> PersistentAgent:
    """The chosen agent, or a new one of the user's own. Raises PermissionDenied."""
    if not who.cleaned_data["agent"]:
        return PersistentAgent.objects.create(name=who.cleaned_data["name"].strip(), user_id=request.user.pk)
    agent = whose.agents().get(pk=who.cleaned_data["agent"])
    require_right(request, "add_agentemailaccount", agent.user_id)
    return agent


def begin_tests(request: HttpRequest, account: AgentEmailAccount) -> None:
    """Begins to test what is set up; the page of the mailbox shows the steps as they end."""
    by = request.user.get_username()
    try:
        for protocol in ("smtp", "imap"):
            if getattr(account, f"{protocol}_host"):
                diagnose.start_test(account, protocol, by)
    except diagnose.TooManyTests as refused:
        notices.warning(request, str(refused))


# To the provider and back


@page("POST")
def sign_in_new(request: HttpRequest, whose: Whose) -> HttpResponse:
    """Stores the mailbox without any secret, and sends its owner to its provider."""
    who = AddressForm(request.POST, whose)
    if not who.is_valid():
        return render(request, "console/add.html", {"form": who}, status=422)
    discovery = discover(who.cleaned_data["address"])
    try:
        with transaction.atomic():
            account = _stored(request, whose, who, _without_password(discovery))
            return redirect(begin(request, account, discovery.oauth_provider))
    except (InvalidAccount, AuthorizationRefused) as refused:
        form = ConnectForm(
            initial=_initial(discovery), is_confirmed=discovery.is_confirmed, auto_id="connect-%s"
        )
        return _shown(request, who, discovery, form, status=422, problem=str(refused))


def _without_password(discovery: Discovery) -> dict[str, object]:
    servers = {"smtp": discovery.smtp, "imap": discovery.imap}
    name = discovery.username or discovery.address
    return {
        side: {**asdict(server), "auth": "oauth2", "username": name}
        for side, server in servers.items()
        if server is not None
    }


def begin(request: HttpRequest, account: AgentEmailAccount, provider: str) -> str:
    """Where the user signs in to `account`. Raises AuthorizationRefused."""
    url = authorize.begin(account, provider, request.user, _callback_url())
    audit.note(request, account, f"Sent to sign in with {_SIGN_IN_NAMES.get(provider, provider)}.")
    return url


def _callback_url() -> str:
    return config().public_url.rstrip("/") + reverse("console:oauth_callback")


@page()
def callback(request: HttpRequest, whose: Whose) -> HttpResponse:
    """Where the provider sends people back to. The state says which mailbox it is about, and to whom."""
    state, code, error = (request.GET.get(name, "") for name in ("state", "code", "error"))
    if not state or not (code or error):
        raise Http404
    try:
        if error:
            return _not_connected(request, authorize.deny(state, error, request.user))
        account = authorize.finish(state, code, request.user)
    except AuthorizationRefused as refused:
        return _not_connected(request, str(refused))
    audit.note(request, account, "Connected by signing in with its provider.")
    notices.success(request, "Connected. It is being tested now; enable it when the test has passed.")
    begin_tests(request, account)
    return redirect(f"{reverse('console:account', args=[account.pk])}#tests")


def _not_connected(request: HttpRequest, text: str) -> HttpResponse:
    context = {"title": "Not connected", "text": text}
    return render(request, "console/refusal.html", context, status=400)
