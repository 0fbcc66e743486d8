"""Whether From is true decides what is kept back, and a person may let it through."""

from typing import Any

import pytest

from gobii_email import wiring
from gobii_email.models import AgentEmailAccount, PersistentAgentMessage, ReceivedMail
from gobii_email.ports import GaveUp
from gobii_email.services.receive import NotReleasable, release
from tests.conftest import RecordingDoorbell
from tests.services.inbound import mail, received

pytestmark = pytest.mark.django_db

State = ReceivedMail.State
PASSED = "mx.google.com; dmarc=pass header.from=person.example"
FAILED = "mx.google.com; dmarc=fail header.from=person.example"
FORGED = "mx.evil.example; dmarc=pass header.from=person.example"


@pytest.fixture(autouse=True)
def at_gmail(doorbell: RecordingDoorbell, account: AgentEmailAccount) -> None:
    account.imap_host = "imap.gmail.com"
    account.save()


def state(account: AgentEmailAccount, said: str, **values: Any) -> tuple[str, str]:
    row = received(account.endpoint, mail(Authentication_Results=said), **values)
    return row.state, row.authentication


@pytest.mark.parametrize(
    ("policy", "said", "expected"),
    [
        ("quarantine_failures", PASSED, (State.RECEIVED, "pass")),
        ("quarantine_failures", FAILED, (State.QUARANTINED, "fail")),
        ("quarantine_failures", "", (State.RECEIVED, "none")),
        ("quarantine_failures", FORGED, (State.RECEIVED, "none")),
        ("require", PASSED, (State.RECEIVED, "pass")),
        ("require", FAILED, (State.QUARANTINED, "fail")),
        ("require", "", (State.QUARANTINED, "none")),
        ("require", FORGED, (State.QUARANTINED, "none")),
        ("ignore", FAILED, (State.RECEIVED, "fail")),
    ],
)
def test_the_policy_decides(
    account: AgentEmailAccount, settings: Any, policy: str, said: str, expected: tuple[str, str]
) -> None:
    settings.INBOUND_AUTHENTICATION = policy
    assert state(account, said) == expected


def test_the_message_says_which_domain_was_proven(account: AgentEmailAccount) -> None:
    message = received(account.endpoint, mail(Authentication_Results=PASSED)).message
    provenance = message.raw_payload["provenance"]
    assert (provenance["authenticated_domain"], provenance["authentication"]) == ("person.example", "pass")


def test_what_is_kept_back_says_why_and_a_person_lets_it_through(account: AgentEmailAccount) -> None:
    row = received(account.endpoint, mail(Authentication_Results=FAILED))
    assert row.message is None and row.raw is not None
    assert "DMARC fails for person.example" in row.reason and "quarantine_failures" in row.reason
    assert release(row.pk, by="bob") == State.RECEIVED
    row.refresh_from_db()
    assert row.reason.startswith("Released by bob. DMARC fails")
    assert row.message.raw_payload["provenance"]["authentication"] == "fail"
    with pytest.raises(NotReleasable, match="not in quarantine any more"):
        release(row.pk, by="bob")
    assert PersistentAgentMessage.objects.count() == 1


def test_a_released_copy_of_what_was_received_makes_no_second_message(account: AgentEmailAccount) -> None:
    row = received(account.endpoint, mail(Authentication_Results=FAILED))
    received(account.endpoint, mail(Authentication_Results=PASSED), uid=2)
    assert release(row.pk, by="bob") == State.SKIPPED
    assert PersistentAgentMessage.objects.count() == 1


def test_what_cannot_be_read_stays_where_it_is(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = received(account.endpoint, mail(Authentication_Results=FAILED))
    monkeypatch.setattr(wiring.mail_reader(), "read", lambda *_: GaveUp("it fell"))
    with pytest.raises(NotReleasable, match="it fell"):
        release(row.pk, by="bob")
    row.refresh_from_db()
    assert row.state == State.QUARANTINED
