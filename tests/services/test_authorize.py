"""Connecting a mailbox by signing in: whose sign-in, whose mailbox, what was allowed, and the way back."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.classification import AccountState
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    Mailbox,
    OAuthRequest,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
)
from gobii_email.services import accounts, authorize, hold
from gobii_email.services.authorize import AuthorizationRefused
from gobii_email.services.disconnect import disconnect
from gobii_email.testing.oauth_server import LocalOAuthProvider, error
from tests.conftest import RecordingDoorbell, connect
from tests.oauth import ADDRESS, BACK, PEOPLE, PERSONAL, registered, sign_in, switch_on, unconnected

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    """No test here rings a real broker."""


@pytest.fixture
def google(settings: Any) -> Iterator[LocalOAuthProvider]:
    with registered(settings) as provider:
        yield provider


@pytest.fixture
def microsoft(settings: Any) -> Iterator[LocalOAuthProvider]:
    with registered(settings, "microsoft") as provider:
        yield provider


@pytest.fixture
def mailbox(endpoint: PersistentAgentCommsEndpoint) -> AgentEmailAccount:
    return unconnected(endpoint)


@pytest.fixture
def user(db: None) -> Any:
    return get_user_model().objects.create_user("owner")


def columns(account: AgentEmailAccount) -> dict[str, Any]:
    return AgentEmailAccount.objects.filter(pk=account.pk).values().get()


def refused(state: str, code: str, user: Any = None, **named: Any) -> str:
    with pytest.raises(AuthorizationRefused) as caught:
        authorize.finish(state, code, user, **named)
    return str(caught.value)


# Connected


def test_a_mailbox_is_connected_with_its_provider_s_own_servers(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, user: Any
) -> None:
    account = sign_in(mailbox, google, user=user)
    account.refresh_from_db()
    assert (account.smtp_host, account.smtp_port, account.smtp_auth) == ("smtp.gmail.com", 465, "oauth2")
    assert (account.imap_host, account.imap_port, account.imap_auth) == ("imap.gmail.com", 993, "oauth2")
    assert account.smtp_username == account.imap_username == ADDRESS
    assert account.connection_mode == "oauth2"
    assert not account.is_outbound_enabled and not account.is_inbound_enabled
    credential = AgentEmailOAuthCredential.objects.get()
    assert credential.may_send and credential.may_receive and credential.is_signed_in
    access, refresh = credential.get_access_token(), credential.get_refresh_token()
    assert access is not None and google.takes(ADDRESS, access.reveal())
    assert refresh is not None and refresh.reveal() in google.refresh_tokens
    assert credential.expires_at is not None and credential.expires_at > timezone.now()
    for blob in (credential.access_token_encrypted, credential.refresh_token_encrypted):
        assert b"access-" not in bytes(blob) and b"refresh-" not in bytes(blob)


@pytest.mark.parametrize(
    ("person", "smtp"),
    [
        (PEOPLE["microsoft"], ("smtp.office365.com", 587)),
        (PEOPLE["microsoft"] | {"tid": PERSONAL}, ("smtp-mail.outlook.com", 587)),
        (
            PEOPLE["microsoft"]
            | {"preferred_username": "a@corp.example", "email": ADDRESS, "xms_edov": True},
            ("smtp.office365.com", 587),
        ),
        ({"tid": PERSONAL, "email": ADDRESS.upper()}, ("smtp-mail.outlook.com", 587)),
    ],
    ids=["organisation", "personal", "vouched e-mail", "personal e-mail"],
)
def test_microsofts_mailboxes_are_connected(
    mailbox: AgentEmailAccount, microsoft: LocalOAuthProvider, person: dict[str, Any], smtp: tuple[str, int]
) -> None:
    microsoft.person = person
    account = sign_in(mailbox, microsoft, "microsoft")
    assert (account.smtp_host, account.smtp_port) == smtp
    assert (account.imap_host, account.imap_auth) == ("outlook.office365.com", "oauth2")


def test_a_password_account_goes_over_and_its_settings_are_to_be_tested_again(
    endpoint: PersistentAgentCommsEndpoint, google: LocalOAuthProvider
) -> None:
    account = sign_in(connect(endpoint, 587, smtp_host="smtp.gmail.com"), google)
    account.refresh_from_db()
    assert (account.smtp_port, account.smtp_auth) == (587, "oauth2")
    assert account.smtp_password_encrypted is None
    assert not account.is_outbound_enabled and not account.is_smtp_tested


def test_connecting_again_ends_the_hold_and_leaves_what_was_tested(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    account = sign_in(mailbox, google)
    switch_on(account)
    message = api.send_agent_email(from_endpoint=ADDRESS, to="to@rcpt.example", subject="x", body="y")
    AgentEmailAccount.objects.update(state=AccountState.AUTH_NEEDED, state_reason="over")
    message.attempts.update(held_code="auth_needed", due_at=timezone.now() + timedelta(days=1))
    google.faults.no_refresh_token = True
    before = AgentEmailOAuthCredential.objects.get().get_refresh_token()
    account = sign_in(account, google)
    assert account.state == AccountState.ACTIVE and account.is_outbound_enabled and account.is_smtp_tested
    assert message.attempts.get().due_at <= timezone.now()
    assert AgentEmailOAuthCredential.objects.get().get_refresh_token() == before


def test_connecting_again_has_a_held_mailbox_read_again(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    account = sign_in(mailbox, google)
    account.imap_tested_fingerprint, account.is_inbound_enabled = account.imap_fingerprint(), True
    account.save()
    Mailbox.objects.update_or_create(account=account, defaults={"hold_code": "auth_needed"})
    sign_in(account, google)
    row = Mailbox.objects.get()
    assert row.hold_code == "" and row.due_at is not None and row.due_at <= timezone.now()


def test_a_pause_by_a_person_outlasts_a_sign_in(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    hold.pause(mailbox, reason="holiday")
    assert sign_in(mailbox, google).state == AccountState.PAUSED


# Whose sign-in it is


def test_a_sign_in_is_good_once_for_its_own_user_account_and_provider(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, user: Any, agent: PersistentAgent
) -> None:
    other = get_user_model().objects.create_user("other")
    elsewhere = unconnected(
        PersistentAgentCommsEndpoint.objects.create(
            owner_agent=agent, channel="email", address="b@sender.example"
        )
    )
    back = google.sign_in(authorize.begin(mailbox, "google", user, BACK))
    before = columns(mailbox)
    state, code = back["state"], back["code"]
    assert "not known" in refused("x" * 43, code, user)
    assert "another user" in refused(state, code, other)
    assert "another user" in refused(state, code)
    assert "another mailbox" in refused(state, code, user, account=elsewhere)
    assert "begun with Google" in refused(state, code, user, provider="microsoft")
    assert columns(mailbox) == before and google.asked("/token") == []
    assert authorize.finish(state, code, user, provider="google", account=mailbox) == mailbox
    before = columns(mailbox)
    assert "used already" in refused(state, code, user)
    assert columns(mailbox) == before and len(google.asked("/token")) == 1


def test_a_sign_in_lasts_ten_minutes(mailbox: AgentEmailAccount, google: LocalOAuthProvider) -> None:
    back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    row = OAuthRequest.objects.get()
    assert timedelta(minutes=9) < row.expires_at - timezone.now() <= timedelta(minutes=10)
    OAuthRequest.objects.update(expires_at=timezone.now())
    assert "ten minutes" in refused(back["state"], back["code"])
    assert google.asked("/token") == [] and not AgentEmailOAuthCredential.objects.exists()
    OAuthRequest.objects.update(expires_at=timezone.now() - timedelta(days=2))
    authorize.begin(mailbox, "google", None, BACK)
    assert OAuthRequest.objects.count() == 1


def test_only_the_hash_of_a_state_is_kept_and_states_are_long(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    assert len(back["state"]) == 43  # 256 bits in base64
    row = OAuthRequest.objects.values().get()
    assert back["state"] not in str(row)


def test_a_code_of_another_sign_in_connects_nothing(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    """The challenge binds a code to its own sign-in, whoever slips it into another one."""
    first = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    second = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    assert "did not accept the sign-in" in refused(second["state"], first["code"])
    assert not AgentEmailOAuthCredential.objects.exists()


def test_whoever_says_no_is_told_so_and_the_sign_in_is_over(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, user: Any
) -> None:
    back = google.sign_in(authorize.begin(mailbox, "google", user, BACK))
    with pytest.raises(AuthorizationRefused, match="another user"):
        authorize.deny(back["state"], "access_denied", None)
    assert "Google was not allowed" in authorize.deny(back["state"], "access_denied", user)
    assert "used already" in refused(back["state"], back["code"], user)


# Whose mailbox it is


@pytest.mark.parametrize(
    ("service", "person"),
    [
        ("google", {"email": "other@sender.example", "email_verified": True}),
        ("google", {"email": ADDRESS, "email_verified": False}),
        ("google", {"email": ADDRESS}),
        ("google", {}),
        ("microsoft", PEOPLE["microsoft"] | {"preferred_username": "other@sender.example"}),
        # What a tenant's administrator may type into a profile.
        ("microsoft", PEOPLE["microsoft"] | {"preferred_username": "o@evil.example", "email": ADDRESS}),
    ],
    ids=["other", "unverified", "unsaid", "nobody", "other at Microsoft", "typed in"],
)
def test_somebody_else_s_mailbox_is_refused_revoked_and_never_stored(
    mailbox: AgentEmailAccount, settings: Any, service: str, person: dict[str, Any]
) -> None:
    with registered(settings, service) as provider:
        provider.person = person
        before = columns(mailbox)
        back = provider.sign_in(authorize.begin(mailbox, service, None, BACK))
        text = refused(back["state"], back["code"])
        assert ADDRESS in text and "Sign in to" in text
        assert columns(mailbox) == before and not AgentEmailOAuthCredential.objects.exists()
        assert bool(provider.revoked) == (service == "google")


def test_the_grant_of_a_mailbox_that_is_rightly_connected_is_spared(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, agent: PersistentAgent
) -> None:
    """Google ends the whole grant of a person with any of its tokens."""
    sign_in(mailbox, google)
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="b@sender.example"
    )
    back = google.sign_in(authorize.begin(unconnected(other), "google", None, BACK))
    assert "You signed in to agent@sender.example" in refused(back["state"], back["code"])
    assert google.revoked == []


@pytest.mark.parametrize("fault", ["claims", "other_key", "no_id_token"])
def test_an_identity_that_proves_nothing_connects_nothing(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, fault: str
) -> None:
    setattr(google.faults, fault, {"nonce": "another"} if fault == "claims" else True)
    back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    assert "Google" in refused(back["state"], back["code"])
    assert not AgentEmailOAuthCredential.objects.exists() and google.revoked


def test_a_sign_in_without_lasting_access_connects_nothing(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    google.faults.no_refresh_token = True
    back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    assert "no lasting access" in refused(back["state"], back["code"])
    assert not AgentEmailOAuthCredential.objects.exists() and google.revoked


def test_a_provider_that_does_not_answer_connects_nothing(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    google.faults.answers["/token"] = [error("server_error", 503), error("invalid_client", 401)]
    for said in ("cannot be reached just now", "GOOGLE_CLIENT_ID"):
        back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
        text = refused(back["state"], back["code"])
        assert said in text and "Nothing was connected" in text


# What was allowed

SMTP, IMAP = "https://outlook.office.com/SMTP.Send", "https://outlook.office.com/IMAP.AccessAsUser.All"


@pytest.mark.parametrize(
    ("scope", "smtp_auth", "imap_auth"),
    [(f"{SMTP} {IMAP}".lower(), "oauth2", "oauth2"), (SMTP, "oauth2", "login"), (IMAP, "login", "oauth2")],
    ids=["both", "sending", "receiving"],
)
def test_only_what_was_allowed_goes_over_to_the_sign_in(
    mailbox: AgentEmailAccount, microsoft: LocalOAuthProvider, scope: str, smtp_auth: str, imap_auth: str
) -> None:
    microsoft.faults.scope = scope
    account = sign_in(mailbox, microsoft, "microsoft")
    assert (account.smtp_auth, account.imap_auth) == (smtp_auth, imap_auth)


def test_nothing_allowed_connects_nothing(mailbox: AgentEmailAccount, google: LocalOAuthProvider) -> None:
    for scope in ("openid email", "something else"):
        google.faults.scope = scope
        back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
        assert "Neither sending nor receiving" in refused(back["state"], back["code"])
    assert not AgentEmailOAuthCredential.objects.exists()


def test_a_direction_that_was_not_allowed_cannot_be_switched_on(
    mailbox: AgentEmailAccount, microsoft: LocalOAuthProvider
) -> None:
    account = sign_in(mailbox, microsoft, "microsoft")
    switch_on(account)
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.save()
    accounts.enable(account, inbound=True)
    microsoft.faults.scope = IMAP
    account = sign_in(account, microsoft, "microsoft")
    assert account.is_inbound_enabled and not account.is_outbound_enabled
    with pytest.raises(accounts.InvalidAccount, match=r"sending was not allowed.*Connect it again"):
        accounts.enable(account, outbound=True)
    with pytest.raises(accounts.InvalidAccount, match="sending was not allowed"):
        accounts.edit_account(account, {"is_outbound_enabled": True})


# Where tokens go


@pytest.mark.parametrize("host", ["mail.evil.example", "smtp.office365.com", "10.0.0.1"])
def test_nobody_is_sent_to_sign_in_for_a_server_of_somebody_else(
    endpoint: PersistentAgentCommsEndpoint, google: LocalOAuthProvider, host: str
) -> None:
    account = unconnected(endpoint, smtp_host=host, smtp_port=587, imap_host=host, imap_port=993)
    with pytest.raises(AuthorizationRefused, match=f"{host} is not a mail server of Google"):
        authorize.begin(account, "google", None, BACK)
    assert not OAuthRequest.objects.exists()


def test_servers_changed_during_the_sign_in_get_no_token(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    back = google.sign_in(authorize.begin(mailbox, "google", None, BACK))
    AgentEmailAccount.objects.update(smtp_host="mail.evil.example", imap_host="mail.evil.example")
    assert "is not a mail server of Google" in refused(back["state"], back["code"])
    assert not AgentEmailOAuthCredential.objects.exists() and google.revoked


def test_a_password_s_server_does_not_get_the_token_by_another_way_to_sign_in(
    endpoint: PersistentAgentCommsEndpoint, google: LocalOAuthProvider
) -> None:
    account = unconnected(endpoint, imap_host="mail.evil.example", imap_port=993, imap_username=ADDRESS)
    account.set_imap_password("s3cret")
    account.save()
    account = sign_in(account, google)
    assert (account.smtp_auth, account.imap_auth) == ("oauth2", "login")
    with pytest.raises(accounts.InvalidAccount, match="no server of Google"):
        accounts.edit_account(account, {"imap_auth": "oauth2"})


@pytest.mark.parametrize(
    "uri", ["http://mail.example/back", "ftp://127.0.0.1/", "https:///x", "/back", "javascript:alert(1)"]
)
def test_people_are_sent_back_over_https_alone(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, uri: str
) -> None:
    with pytest.raises(AuthorizationRefused, match="https"):
        authorize.begin(mailbox, "google", None, uri)


def test_what_is_not_set_up_is_said_with_its_settings(mailbox: AgentEmailAccount) -> None:
    assert authorize.configured_providers() == ()
    with pytest.raises(AuthorizationRefused, match="MICROSOFT_CLIENT_ID and MICROSOFT_CLIENT_SECRET"):
        authorize.begin(mailbox, "microsoft", None, BACK)


# And back


def test_disconnecting_revokes_deletes_and_holds(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    account = sign_in(mailbox, google)
    switch_on(account)
    message = api.send_agent_email(from_endpoint=ADDRESS, to="to@rcpt.example", subject="x", body="y")
    begun = google.sign_in(authorize.begin(account, "google", None, BACK))
    done = disconnect(account)
    assert done.is_revoked and "withdrawn" in done.text
    assert len(google.revoked) == 1 and not google.refresh_tokens
    account.refresh_from_db()
    assert not account.is_outbound_enabled and not AgentEmailOAuthCredential.objects.exists()
    assert message.attempts.get().status == "queued"
    assert "not known" in refused(begun["state"], begun["code"])


@pytest.mark.parametrize("service", ["google", "microsoft"])
def test_where_nothing_can_be_revoked_the_owner_is_told_where_to(
    endpoint: PersistentAgentCommsEndpoint, settings: Any, service: str
) -> None:
    with registered(settings, service) as provider:
        account = sign_in(unconnected(endpoint), provider, service)
        provider.faults.answers["/revoke"] = [error("server_error", 500)]
        done = disconnect(account)
    assert not done.is_revoked and f"{service}.com" in done.text
    assert not AgentEmailOAuthCredential.objects.exists()


def test_removing_the_account_revokes_as_well(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, django_capture_on_commit_callbacks: Any
) -> None:
    account = sign_in(mailbox, google)
    with django_capture_on_commit_callbacks(execute=True):
        accounts.delete(account)
    assert len(google.revoked) == 1


# Nothing is shown


def test_no_token_code_or_state_is_logged_or_shown(
    mailbox: AgentEmailAccount, google: LocalOAuthProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = authorize.begin(mailbox, "google", None, BACK)
    back = google.sign_in(url)
    account = authorize.finish(back["state"], back["code"], None)
    said = [refused(back["state"], back["code"])]
    google.person = {"email": "other@sender.example", "email_verified": True}
    again = google.sign_in(authorize.begin(account, "google", None, BACK))
    said.append(refused(again["state"], again["code"]))
    forms = [value for path, form in google.requests for name, value in form.items() if name != "grant_type"]
    hidden = {value for value in forms if value not in {BACK, ADDRESS}} | set(google.refresh_tokens)
    hidden |= {back["state"], again["state"], *google.access_tokens, *google.revoked}
    everything = " ".join([caplog.text, *(str(vars(record)) for record in caplog.records), *said])
    everything += str(list(AgentEmailAccount.objects.values())) + str(list(OAuthRequest.objects.values()))
    assert len(hidden) > 8 and "oauth.connected" in everything
    assert [secret for secret in hidden if secret in everything] == []
