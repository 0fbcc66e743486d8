"""Polls of a real Dovecot, as providers run it: what comes is read once, and nothing there is touched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gobii_email.models import AgentEmailAccount, PersistentAgent, PersistentAgentMessage, ReceivedMail
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.diagnose import test_imap
from gobii_email.services.poll import Visit, visit
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.processes import ServerUnavailable
from tests.services.polling import FRIEND, cursor, mail, stored

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("doorbell")]

PASSWORD = "pässwörd €😀 with blanks"
ADDRESSES = [f"{name}@mail.example" for name in ("anna", "berta", "clara", "dora")]
FOLDER = "Entwürfe & mehr"


@pytest.fixture(scope="module")
def dovecot(authority: ThrowAwayAuthority) -> Iterator[RealDovecot]:
    try:
        with RealDovecot(
            authority.good_certificate(), dict.fromkeys(ADDRESSES, PASSWORD), [FOLDER]
        ) as started:
            yield started
    except ServerUnavailable as problem:
        pytest.skip(f"POLLS OF A REAL DOVECOT ARE NOT TESTED HERE: {problem}")


def inbox(dovecot: RealDovecot, account: AgentEmailAccount) -> Path:
    return dovecot.directory / "mail" / str(account)


@pytest.fixture(scope="module")
def unused() -> list[str]:
    """A mailbox for each test: what one leaves there is no other's business."""
    return [*ADDRESSES]


@pytest.fixture
def account(dovecot: RealDovecot, unused: list[str], settings: Any) -> AgentEmailAccount:
    address = unused.pop()
    settings.BYO_EMAIL_ALLOWED_PORTS = {*dovecot.ports.values(), 2525}
    login = {"username": address, "password": PASSWORD}
    imap = {"host": "localhost", "port": dovecot.ports["implicit"], "security": "ssl"} | login
    smtp = {"host": "localhost", "port": 2525, "security": "starttls"} | login
    made = apply_account({"agent": "Anna", "address": address, "smtp": smtp, "imap": imap})
    PersistentAgent.objects.update(whitelist_policy="unrestricted")
    assert test_imap(made).ok
    made.refresh_from_db()
    return enable(made, inbound=True)


def polled(account: AgentEmailAccount) -> Visit:
    result = visit(account.pk, is_asked_for=True)
    assert result.is_ok, result
    return result


def test_mail_is_read_once_and_left_as_it_was(dovecot: RealDovecot, account: AgentEmailAccount) -> None:
    assert polled(account).outcome == "baseline"
    dovecot.put(str(account), mail(1))
    assert polled(account).found == 1 and polled(account).found == 0
    (row,) = stored()
    assert (row.state, row.from_address, row.rfc_message_id) == ("received", FRIEND, "<1@rcpt.example>")
    assert bytes(row.raw or b"") == mail(1) and row.internal_at is not None
    assert PersistentAgentMessage.objects.get(is_outbound=False).subject == "Mail 1"
    flags = [path.name.partition(",")[2] for path in (inbox(dovecot, account) / "cur").iterdir()]
    left_new = list((inbox(dovecot, account) / "new").iterdir())
    assert all("S" not in marks for marks in flags) and len(flags) + len(left_new) == 1


def test_a_folder_that_the_server_names_anew_floods_nobody(
    dovecot: RealDovecot, account: AgentEmailAccount
) -> None:
    polled(account)
    for number in (10, 11, 12):
        dovecot.put(str(account), mail(number))
    assert polled(account).stored == 3
    before = cursor(account)
    generation = int(before.split(":")[1]) + 1
    dovecot.name_anew(str(account), generation)
    dovecot.put(str(account), mail(13))
    assert polled(account).stored == 1
    assert int(cursor(account).split(":")[1]) == generation
    assert ReceivedMail.objects.filter(state="received").count() == 4


def test_a_folder_with_blanks_and_accents_is_read(dovecot: RealDovecot, account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.update(imap_folder=FOLDER)
    assert polled(account).outcome == "baseline"


def test_a_mail_in_an_unknown_shape_stops_nothing(dovecot: RealDovecot, account: AgentEmailAccount) -> None:
    polled(account)
    dovecot.put(str(account), b"\xff\xfe not a mail at all\r\n\x01" + bytes(range(1, 256)) * 20)
    dovecot.put(str(account), mail(20))
    assert polled(account).found == 2
    assert [row.state for row in stored()] == ["skipped", "received"]
