"""How many statements a submission takes: few, and no more for three hundred recipients than for one."""

from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from gobii_email import api
from gobii_email.models import (
    AgentEmailAccount,
    CommsAllowlistEntry,
    FrozenMessage,
    OutboundMessageRecipient,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.bulk_rows import MOST_BYTES
from tests.conftest import RecordingDoorbell

Endpoint = PersistentAgentCommsEndpoint

pytestmark = pytest.mark.django_db

FEW, MANY = 1, 300
WRITES = ("INSERT", "UPDATE", "DELETE", "COPY", "WITH")


def writes(tables: int) -> int:
    """PostgreSQL writes whatever belongs to a message at once, SQLite table by table."""
    return 1 if connection.vendor == "postgresql" else tables


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    """No test here rings a real broker."""


def counted(act: Callable[[], object]) -> tuple[int, int]:
    """(writes, all statements) of `act`, a savepoint's two among the latter."""
    with CaptureQueriesContext(connection) as queries:
        act()
    # SQLite's log says "3 times: INSERT …" for one prepared statement.
    statements = [row["sql"].split("times: ")[-1] for row in queries]
    return sum(text.startswith(WRITES) for text in statements), len(statements)


def people(count: int, name: str = "to") -> list[str]:
    return [f"{name}{number}@rcpt.example" for number in range(count)]


def known(addresses: list[str]) -> list[Endpoint]:
    return [
        Endpoint.objects.get_or_create(channel="email", address=text, owner_agent=None)[0]
        for text in addresses
    ]


def stored(endpoint: Endpoint, copies: int, **values: object) -> PersistentAgentMessage:
    (to,) = known(["to@rcpt.example"])
    message = PersistentAgentMessage.objects.create(
        from_endpoint=endpoint, to_endpoint=to, subject="Hello", body="Good morning", **values
    )
    message.cc_endpoints.set(known(people(copies, "cc")))
    message.bcc_endpoints.set(known(people(1, "bcc")))
    return PersistentAgentMessage.objects.get(pk=message.pk)


@pytest.mark.parametrize("is_reply", [False, True], ids=["new", "reply"])
@pytest.mark.parametrize("key", [None, "order-7"], ids=["no key", "key"])
def test_delivering_a_stored_message_takes_few_writes_and_twelve_statements(
    account: AgentEmailAccount, endpoint: Endpoint, key: str | None, is_reply: bool
) -> None:
    parent = stored(endpoint, FEW) if is_reply else None
    found = {}
    for count in (FEW, MANY):
        message = stored(endpoint, count, parent=parent)
        options = {"idempotency_key": f"{key}-{count}"} if key else {}
        found[count] = counted(lambda m=message, o=options: api.deliver_agent_email(m, **o))  # type: ignore[misc]
        assert message.recipients.count() == count + 2
    assert found[FEW] == found[MANY]
    assert found[MANY][0] == writes(5)
    assert found[MANY][1] <= 12


@pytest.mark.parametrize("key", [None, "order-7"], ids=["no key", "key"])
def test_sending_to_those_who_are_known_takes_few_writes_and_twelve_statements(
    account: AgentEmailAccount, endpoint: Endpoint, key: str | None
) -> None:
    known(people(MANY))

    def send(count: int) -> None:
        api.send_agent_email(
            from_endpoint=endpoint,
            to=people(count),
            subject="Hello",
            body="Good morning",
            idempotency_key=key and f"{key}-{count}",
        )

    few, many = counted(lambda: send(FEW)), counted(lambda: send(MANY))
    assert few == many
    assert many[0] == writes(5)
    assert many[1] <= 12


def test_new_contacts_copies_and_files_take_no_more_writes_however_many_they_are(endpoint: Endpoint) -> None:
    def send(count: int) -> None:
        api.send_agent_email(
            from_endpoint=endpoint,
            to=people(count, f"to{count}-"),
            cc=people(count // 3 or 1, f"cc{count}-"),
            bcc=people(count // 3 or 1, f"bcc{count}-"),
            subject="Hello",
            body="Good morning",
            attachments=[api.EmailAttachmentPayload("a.txt", b"a", "text/plain")] * count,
        )

    few, many = counted(lambda: send(FEW)), counted(lambda: send(MANY))
    assert few == many
    assert many[0] == 1 + writes(5 + 3)
    assert OutboundMessageRecipient.objects.count() == 3 + 500


def test_an_allow_list_is_asked_once(agent: PersistentAgent, endpoint: Endpoint) -> None:
    agent.whitelist_policy = "manual"
    agent.save()
    known(people(MANY))
    for address in people(MANY):
        CommsAllowlistEntry.objects.create(agent=agent, address=address)

    def send(count: int) -> None:
        api.send_agent_email(from_endpoint=endpoint, to=people(count), subject="Hello", body="Good morning")

    assert counted(lambda: send(FEW)) == counted(lambda: send(MANY))


def test_a_large_mail_is_stored_as_it_was_frozen(endpoint: Endpoint) -> None:
    content = bytes(range(256)) * (4 * MOST_BYTES // 256)
    message = api.send_agent_email(
        from_endpoint=endpoint,
        to="to@rcpt.example",
        subject="Grüße",
        body="Good morning — \\ \t done",
        attachments=[api.EmailAttachmentPayload("a.bin", content, "application/octet-stream")],
    )
    frozen = FrozenMessage.objects.get(message=message)
    assert len(bytes(frozen.mime)) == frozen.size > len(content)
    assert bytes(frozen.mime).endswith(b"--\r\n")
    assert "Good morning — \\" in frozen.text
