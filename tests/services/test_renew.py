"""Access tokens kept fresh: once for all workers, stored before use; and what mail does meanwhile."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connection
from django.utils import timezone
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gobii_email import api, telemetry, wiring
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.domain.classification import AccountState
from gobii_email.domain.diagnosis import Step
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    Lane,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services import diagnose, renew
from gobii_email.services.accounts import apply_account
from gobii_email.services.deliver import deliver
from gobii_email.services.disconnect import disconnect
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.oauth_server import LocalOAuthProvider, error
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.valkey import EmbeddedValkey
from tests.conftest import RecordingDoorbell
from tests.oauth import ADDRESS, registered, sign_in, switch_on, unconnected
from tests.services.measuring import Counted

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"


@pytest.fixture
def google(settings: Any) -> Iterator[LocalOAuthProvider]:
    with registered(settings) as provider:
        yield provider


@pytest.fixture
def server(authority: ThrowAwayAuthority, google: LocalOAuthProvider) -> Iterator[ScriptedSmtpServer]:
    """A submission server that asks the provider about tokens."""
    with ScriptedSmtpServer(tls=authority.good(), takes_token=google.takes) as made:
        yield made


@pytest.fixture
def account(
    endpoint: PersistentAgentCommsEndpoint,
    google: LocalOAuthProvider,
    server: ScriptedSmtpServer,
    settings: Any,
) -> AgentEmailAccount:
    """Connected by a sign-in, and tested."""
    settings.BYO_EMAIL_ALLOWED_PORTS = f"993,{server.port}"
    found = sign_in(unconnected(endpoint, smtp_host="localhost", smtp_port=server.port), google)
    switch_on(found)
    google.requests.clear()
    return found


def row() -> AgentEmailOAuthCredential:
    return AgentEmailOAuthCredential.objects.get()


def stored() -> str:
    token = row().get_access_token()
    assert token is not None
    return token.reveal()


def ends_in(**span: float) -> None:
    """The access token says so; the servers take it as before."""
    AgentEmailOAuthCredential.objects.update(expires_at=timezone.now() + timedelta(**span))


def send(number: int = 1) -> PersistentAgentMessage:
    return api.send_agent_email(
        from_endpoint=ADDRESS, to=f"to{number}@rcpt.example", subject="Hello", body="Good morning"
    )


def turn(message: PersistentAgentMessage) -> str:
    last = message.attempts.last()
    assert last is not None
    return deliver(str(last.pk), owner="worker-1")


def told(message: PersistentAgentMessage) -> str:
    return " ".join(message.events.values_list("text", flat=True))


def look_now() -> None:
    """Whatever lanes and mails wait for has come."""
    now = timezone.now()
    Lane.objects.update(look_at=now)
    AgentEmailOAuthCredential.objects.update(refresh_blocked_until=None)
    OutboundMessageAttempt.objects.filter(status="queued").update(not_before=now, due_at=now)


# When a token is renewed


def test_renewals_are_counted_by_what_came_of_them(
    account: AgentEmailAccount, google: LocalOAuthProvider, settings: Any, tmp_path: Path
) -> None:
    counted = Counted(settings, tmp_path)
    ends_in(minutes=4)
    access_token(account)
    google.faults.answers["/token"] = [error("invalid_grant")]
    ends_in(minutes=4)
    with pytest.raises(ReconnectNeeded):
        access_token(account)
    found = {
        outcome: counted.of("gobii_email_oauth_refreshes_total", provider="google", outcome=outcome)
        for outcome in ("granted", "owner")
    }
    assert found == {"granted": 1, "owner": 1}
    counted.begin_anew()


def test_a_token_is_renewed_five_minutes_before_its_end(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    before = stored()
    ends_in(minutes=6)
    assert access_token(account).reveal() == before and google.asked("/token") == []
    ends_in(minutes=4)
    after = access_token(account).reveal()
    assert after == stored() != before and len(google.asked("/token")) == 1
    assert account.smtp_server().secret == Secret(after)
    assert row().expires_at is not None and row().expires_at > timezone.now() + timedelta(minutes=50)
    assert access_token(account).reveal() == after and len(google.asked("/token")) == 1


def test_the_rotated_refresh_token_is_stored_and_the_next_renewal_uses_it(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    for _ in range(3):
        ends_in(seconds=0)
        access_token(account)
    used = [form["refresh_token"] for form in google.asked("/token")]
    assert len(set(used)) == 3
    refresh_token = row().get_refresh_token()
    assert refresh_token is not None and list(google.refresh_tokens) == [refresh_token.reveal()]


def test_a_refresh_token_that_stays_is_kept(account: AgentEmailAccount, google: LocalOAuthProvider) -> None:
    google.rotates = False
    for _ in range(2):
        ends_in(seconds=0)
        access_token(account)
    assert len(google.asked("/token")) == 2 and row().refresh_token_encrypted


def test_a_token_without_a_known_end_is_used_until_it_is_refused(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    AgentEmailOAuthCredential.objects.update(expires_at=None)
    token = access_token(account)
    assert google.asked("/token") == []
    assert renewed_token(account, token) not in (None, token)


def test_a_token_so_short_lived_that_it_is_always_due_is_used_all_the_same(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    google.lifetime = 60
    ends_in(seconds=0)
    assert google.takes(ADDRESS, access_token(account).reveal())


def test_who_lost_the_race_takes_the_winner_s_token(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    """A server refused a token that another worker has renewed meanwhile."""
    refused = access_token(account)
    assert renewed_token(account, refused) is not None
    assert renewed_token(account, refused) == Secret(stored())
    assert len(google.asked("/token")) == 1


# Tokens that somebody gave


def test_tokens_from_a_document_work_and_are_renewed_where_a_client_is_set_up(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer, settings: Any
) -> None:
    given = google.access_tokens[stored()]
    google.access_tokens["given-access"] = google.refresh_tokens["given-refresh"] = given
    oauth = {"provider": "gmail", "access_token": "given-access", "refresh_token": "given-refresh"}
    apply_account({"address": ADDRESS, "oauth": oauth | {"expires_at": "2020-01-01T00:00:00Z"}})
    assert not row().is_signed_in and row().may_send
    settings.GOOGLE_CLIENT_ID = ""
    assert access_token(account).reveal() == "given-access"
    message = send()
    assert turn(message) == "sent"
    assert google.asked("/token") == []
    settings.GOOGLE_CLIENT_ID = google.settings("google")["GOOGLE_CLIENT_ID"]
    assert access_token(account).reveal() == stored() != "given-access"
    assert google.asked("/token")[-1]["refresh_token"] == "given-refresh"


def test_a_token_of_a_provider_that_nothing_is_known_of_is_used_as_it_is(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    oauth = {"provider": "exim", "access_token": "given", "expires_at": "2020-01-01T00:00:00Z"}
    apply_account({"address": ADDRESS, "oauth": oauth | {"refresh_token": "given-refresh"}})
    assert access_token(account).reveal() == "given"
    assert renewed_token(account, Secret("given")) is None
    assert google.asked("/token") == []


def test_without_a_credential_or_its_key_the_owner_is_asked(
    account: AgentEmailAccount, google: LocalOAuthProvider, settings: Any
) -> None:
    AgentEmailOAuthCredential.objects.update(refresh_token_encrypted=None, access_token_encrypted=None)
    with pytest.raises(SecretUnreadable, match="No access token"):
        access_token(account)
    AgentEmailOAuthCredential.objects.all().delete()
    with pytest.raises(SecretUnreadable, match="connect it again"):
        access_token(account)


def test_a_refresh_token_that_cannot_be_read_keeps_nobody_waiting(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    blob = bytes(row().refresh_token_encrypted or b"")[:-1] + b"!"
    AgentEmailOAuthCredential.objects.update(refresh_token_encrypted=blob)
    ends_in(seconds=-1)
    for _ in range(2):
        with pytest.raises(SecretUnreadable, match="again"):
            access_token(account)
    assert row().refresh_lease is None


def test_nobody_sees_a_new_token_before_it_is_stored(
    account: AgentEmailAccount, google: LocalOAuthProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of a worker share the account object while one of them renews."""
    assert account.smtp_server().secret == Secret(stored())
    real, seen = AgentEmailOAuthCredential._write_under_lease, []

    def write(credential: AgentEmailOAuthCredential, **values: Any) -> bool:
        seen.append(account.smtp_server().secret == Secret(stored()))
        return real(credential, **values)

    monkeypatch.setattr(AgentEmailOAuthCredential, "_write_under_lease", write)
    ends_in(seconds=-1)
    access_token(account)
    assert seen == [True] and account.smtp_server().secret == Secret(stored())


# Mail meanwhile


def test_mail_goes_out_with_the_renewed_token(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.expire()
    ends_in(seconds=-1)
    message = send()
    assert turn(message) == "sent"
    assert (server.messages[0].user, server.messages[0].mechanism) == (ADDRESS, "XOAUTH2")
    assert [is_right for _, _, is_right in server.logins] == [True]


def test_a_token_that_the_server_refuses_is_renewed_once_and_the_mail_goes_out(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.expire()
    first, second = send(1), send(2)
    assert turn(first) == "sent"
    second.refresh_from_db()
    assert second.latest_status == "sent"
    assert first.attempts.count() == 1
    assert [is_right for _, _, is_right in server.logins][:2] == [False, True]
    assert len(google.asked("/token")) == 1
    account.refresh_from_db()
    assert account.state == AccountState.ACTIVE


def test_a_server_that_refuses_the_new_token_as_well_holds_the_account(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    server.takes_token = lambda user, token: False
    message = send()
    turn(message)
    account.refresh_from_db()
    assert account.state == AccountState.AUTH_NEEDED
    assert len(google.asked("/token")) == 1 and len(server.logins) == 2
    assert "access token is not accepted" in account.state_reason and "password" not in account.state_reason
    message.refresh_from_db()
    assert message.latest_status == "queued"
    tested = diagnose.test_smtp(account)
    assert "access token is not accepted" in tested.advice and "password" not in tested.advice


def test_a_withdrawn_grant_holds_the_account_and_fails_no_mail(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.withdraw()
    ends_in(seconds=-1)
    message = send()
    assert turn(message) == "postponed"
    account.refresh_from_db()
    assert account.state == AccountState.AUTH_NEEDED and "Connect the account again" in account.state_reason
    assert server.logins == [] and message.attempts.get().status == "queued"
    assert "Connect the account again" in told(message)
    assert "Connect the account again" in (api.delivery_status(message.pk).waiting_for or "")
    look_now()
    turn(message)
    assert len(google.asked("/token")) == 1  # nobody asks again before somebody acts
    sign_in(account, google)
    assert turn(message) == "sent"
    assert message.attempts.count() == 1


def test_a_grant_that_is_withdrawn_while_mail_is_sent_holds_the_account(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.withdraw()
    message = send()
    turn(message)
    account.refresh_from_db()
    assert account.state == AccountState.AUTH_NEEDED and len(server.logins) == 1
    message.refresh_from_db()
    assert message.latest_status == "queued"


def test_a_pause_by_a_person_stays_when_the_grant_is_over(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    google.withdraw()
    ends_in(seconds=-1)
    AgentEmailAccount.objects.update(state=AccountState.PAUSED, state_reason="holiday")
    with pytest.raises(ReconnectNeeded):
        access_token(account)
    account.refresh_from_db()
    assert (account.state, account.state_reason) == (AccountState.PAUSED, "holiday")


@pytest.mark.parametrize(
    ("code", "said"),
    [("server_error", "cannot be reached just now"), ("invalid_client", "GOOGLE_CLIENT_SECRET")],
)
def test_a_provider_that_issues_nothing_postpones_the_mail_and_uses_up_no_attempt(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer, code: str, said: str
) -> None:
    google.faults.answers["/token"] = [error(code, 503 if code == "server_error" else 401)]
    ends_in(seconds=-1)
    message, other = send(1), send(2)
    assert turn(message) == "postponed"
    assert turn(other) == "postponed"
    assert len(google.asked("/token")) == 1  # a pause for everybody
    assert said in told(message) and said in (api.delivery_status(message.pk).waiting_for or "")
    account.refresh_from_db()
    assert account.state == AccountState.ACTIVE and server.logins == []
    look_now()
    assert turn(message) == "sent"
    assert message.attempts.count() == 1 and not row().refresh_error


def test_a_token_that_is_good_for_minutes_is_used_while_the_provider_is_away(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.faults.answers["/token"] = [error("server_error", 503)]
    ends_in(minutes=3)
    assert turn(send()) == "sent"
    assert turn(send(2)) == "sent"
    assert len(google.asked("/token")) == 1


def test_a_refused_token_that_cannot_be_renewed_now_defers_the_mail_and_holds_nothing(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.expire()
    google.faults.answers["/token"] = [error("server_error", 503)]
    message = send()
    assert turn(message) == "deferred"
    account.refresh_from_db()
    assert account.state == AccountState.ACTIVE
    assert message.attempts.first().error_code == "token_unavailable"
    AgentEmailOAuthCredential.objects.update(refresh_blocked_until=timezone.now() + timedelta(minutes=1))
    Lane.objects.update(look_at=timezone.now())
    OutboundMessageAttempt.objects.filter(status="queued").update(
        not_before=timezone.now(), due_at=timezone.now()
    )
    assert turn(message) == "postponed" and len(server.logins) == 1  # not tried at the server again
    look_now()
    assert turn(message) == "sent"


# Tests of the mailbox


def test_a_test_renews_the_token_first(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.expire()
    ends_in(seconds=-1)
    assert diagnose.test_smtp(account).ok and [is_right for _, _, is_right in server.logins] == [True]


def test_a_test_whose_token_is_refused_renews_it_and_tells_each_step_once(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.expire()
    told: list[Step] = []
    found = diagnose.test_smtp(account, on_step=told.append)
    assert found.ok and [is_right for _, _, is_right in server.logins] == [False, True]
    names = [step.id for step in told]
    assert len(names) == len(set(names)) and names == [step.id for step in found.steps]
    assert not any(step.status == "fail" for step in told)
    server.takes_token = lambda user, token: False
    told.clear()
    found = diagnose.test_smtp(account, on_step=told.append)
    assert not found.ok and "access token is not accepted" in found.advice
    assert [step.id for step in told] == [step.id for step in found.steps]


class NewestToken(dict[str, str]):
    """What an IMAP server compares with: the access token that was issued last."""

    def __init__(self, provider: LocalOAuthProvider) -> None:
        self.provider = provider

    def get(self, user: str, default: Any = None) -> Any:
        return list(self.provider.access_tokens)[-1] if user == ADDRESS else default


def test_a_test_of_reading_renews_the_token_first(
    account: AgentEmailAccount, google: LocalOAuthProvider, authority: ThrowAwayAuthority, settings: Any
) -> None:
    google.expire()
    ends_in(seconds=-1)
    with ScriptedImapServer(tls=authority.good()) as mailbox:
        mailbox.users = NewestToken(google)
        settings.BYO_EMAIL_ALLOWED_PORTS = str(mailbox.port)
        account.imap_host, account.imap_port = "localhost", mailbox.port
        account.save()
        assert diagnose.test_imap(account).ok
        mailbox.users = {}
        assert "access token is not accepted" in diagnose.test_imap(account).advice
    # The refused one is renewed, and the new one is refused as well.
    assert [(user, is_right) for user, _, is_right in mailbox.logins] == [
        (ADDRESS, True),
        (ADDRESS, False),
        (ADDRESS, False),
    ]
    assert mailbox.logins[0][1] in {"XOAUTH2", "OAUTHBEARER"}


def test_a_test_without_a_token_says_why_and_holds_what_is_over_alone(
    account: AgentEmailAccount, google: LocalOAuthProvider, server: ScriptedSmtpServer
) -> None:
    google.faults.answers["/token"] = [error("server_error", 503)]
    ends_in(seconds=-1)
    away = diagnose.test_smtp(account)
    assert not away.ok and "cannot be reached just now" in away.text and "later" in away.advice
    account.refresh_from_db()
    assert account.state == AccountState.ACTIVE and account.is_smtp_tested
    google.withdraw()
    look_now()
    over = diagnose.test_smtp(account)
    assert not over.ok and "Connect the account again" in over.text and server.logins == []
    account.refresh_from_db()
    assert account.state == AccountState.AUTH_NEEDED and account.is_outbound_enabled


# Many at once


@pytest.mark.django_db(transaction=True)
def test_many_workers_cause_one_renewal(account: AgentEmailAccount, google: LocalOAuthProvider) -> None:
    google.faults.delays["/token"] = 0.3
    ends_in(seconds=-1)
    found = at_once(8, lambda: access_token(AgentEmailAccount.objects.get(pk=account.pk)).reveal())
    assert set(found) == {stored()} and len(google.asked("/token")) == 1


@pytest.mark.django_db(transaction=True)
def test_many_refusals_cause_one_renewal(account: AgentEmailAccount, google: LocalOAuthProvider) -> None:
    google.faults.delays["/token"] = 0.3
    refused = Secret(stored())
    found = at_once(8, lambda: renewed_token(AgentEmailAccount.objects.get(pk=account.pk), refused))
    assert found == [Secret(stored())] * 8 and len(google.asked("/token")) == 1


@pytest.mark.django_db(transaction=True)
def test_turns_of_many_threads_send_everything_after_one_renewal_and_leave_no_token_in_redis(
    account: AgentEmailAccount,
    google: LocalOAuthProvider,
    server: ScriptedSmtpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    google.expire()
    ends_in(seconds=-1)
    google.faults.delays["/token"] = 0.2
    messages = [send(number) for number in range(12)]
    with EmbeddedValkey() as valkey:
        limiter = RedisLimiter(valkey.url)
        monkeypatch.setattr(wiring, "limiter", lambda: limiter)
        at_once(4, lambda: [turn(message) for message in messages])
        assert {message.latest_status for message in PersistentAgentMessage.objects.all()} == {"sent"}
        assert len(server.messages) == 12 and len(google.asked("/token")) == 1
        client = redis.Redis.from_url(valkey.url)
        dump = b" ".join(key + (client.dump(key) or b"") for key in client.scan_iter())
        client.close()
        limiter._redis.close()
    assert dump and not any(token.encode() in dump for token in google.access_tokens)


def at_once(count: int, act: Callable[[], Any]) -> list[Any]:
    """What `act` answers in each of `count` threads that begin together."""
    start, found, problems = threading.Barrier(count), [], []

    def run() -> None:
        try:
            start.wait(60)
            found.append(act())
        except Exception as problem:
            problems.append(problem)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not problems and len(found) == count
    return found


def test_a_renewal_that_comes_too_late_overwrites_nothing(
    account: AgentEmailAccount, google: LocalOAuthProvider
) -> None:
    """Somebody connected the mailbox anew while a worker waited for the provider's answer."""
    late = row()
    now = timezone.now()
    assert late.take_refresh_lease(now, now + renew.LEASE)
    assert not row().take_refresh_lease(now, now + renew.LEASE)
    sign_in(account, google)
    fresh = stored()
    refresh_token = late.get_refresh_token()
    assert refresh_token is not None
    answer = wiring.token_issuers()["google"].refresh(refresh_token, late.scope)
    assert not late.keep_tokens(answer, now)  # type: ignore[arg-type]
    assert not late.end_refresh(error="late")
    assert stored() == fresh and row().refresh_error == ""


def test_tokens_of_a_mailbox_that_was_disconnected_meanwhile_are_not_stored(
    account: AgentEmailAccount, google: LocalOAuthProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = wiring.token_issuers()["google"]
    real = issuer.refresh

    def refresh(*given: Any) -> Any:
        answer = real(*given)
        disconnect(account)
        return answer

    monkeypatch.setattr(issuer, "refresh", refresh)
    ends_in(seconds=-1)
    with pytest.raises(SecretUnreadable):
        access_token(account)
    assert not AgentEmailOAuthCredential.objects.exists()


def test_a_worker_that_died_with_the_lease_keeps_the_others_for_a_minute_at_most(
    account: AgentEmailAccount, google: LocalOAuthProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renew, "LONGEST_WAIT", 0.1)
    ends_in(seconds=-1)
    held = {"refresh_lease": uuid.uuid4(), "refresh_blocked_until": timezone.now() + renew.LEASE}
    AgentEmailOAuthCredential.objects.update(**held)
    with pytest.raises(TokenUnavailable, match="Another worker"):
        access_token(account)
    AgentEmailOAuthCredential.objects.update(refresh_blocked_until=timezone.now())
    assert google.takes(ADDRESS, access_token(account).reveal())


# What operators see


def test_a_renewal_is_a_span_and_a_log_line_without_a_token(
    account: AgentEmailAccount,
    google: LocalOAuthProvider,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter, tracing = InMemorySpanExporter(), TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", lambda: tracing.get_tracer("test"))
    caplog.set_level(logging.DEBUG)
    refresh_token = row().get_refresh_token()
    assert refresh_token is not None
    ends_in(seconds=-1)
    access_token(account)
    google.withdraw()
    ends_in(seconds=-1)
    with pytest.raises(ReconnectNeeded):
        access_token(account)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["oauth.refresh"] * 2
    assert dict(spans[0].attributes or {}) == {"oauth.provider": "google"}
    assert dict(spans[1].attributes or {}) == {"oauth.provider": "google", "error.type": "invalid_grant"}
    events = [record.getMessage() for record in caplog.records if record.name.startswith("gobii_email")]
    assert events == ["oauth.refreshed", "oauth.refresh_failed", "oauth.reconnect_needed"]
    everything = caplog.text + str([vars(record) for record in caplog.records])
    everything += " ".join(span.to_json() for span in spans)
    secrets = {refresh_token.reveal(), stored(), *(form["refresh_token"] for form in google.asked("/token"))}
    assert not any(secret in everything for secret in secrets)
