"""What is fetched of a mailbox is decided on the header alone, and no header can break that."""

from typing import Any

import pytest

from gobii_email import api
from gobii_email.domain.inbound_mail import read_fields
from gobii_email.models import CommsAllowlistEntry, PersistentAgent, PersistentAgentCommsEndpoint
from gobii_email.services.admission import Fetch, wanted
from tests.conftest import RecordingDoorbell
from tests.services.inbound import ANN, mail

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def only_ann(
    doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent
) -> None:
    agent.whitelist_policy = PersistentAgent.WhitelistPolicy.MANUAL
    agent.save()
    CommsAllowlistEntry.objects.create(agent=agent, address=ANN)


def fetched(endpoint: PersistentAgentCommsEndpoint, size: int = 1_000, **fields: str) -> Fetch:
    return wanted(endpoint, read_fields(mail(**fields)), size).fetch


@pytest.mark.parametrize(
    ("sender", "fetch"),
    [
        (ANN, Fetch.WHOLE),
        ("Ann <ANN@PERSON.EXAMPLE>", Fetch.WHOLE),
        ('"Eve, really" <ann@person.example>', Fetch.WHOLE),
        ("=?utf-8?q?=C3=84nn?= <ann@person.example>", Fetch.WHOLE),
        ("eve@evil.example", Fetch.SKIP),
        ("ann@person.example <eve@evil.example>", Fetch.SKIP),
        ('"ann@person.example" <eve@evil.example>', Fetch.SKIP),
        ("eve@evil.example (ann@person.example)", Fetch.SKIP),
        ("=?utf-8?q?ann=40person.example_=3C?= <eve@evil.example>", Fetch.SKIP),
        ("ann@person.example, eve@evil.example", Fetch.SKIP),
        ("eve@evil.example, Ann <ann@person.example>", Fetch.SKIP),
        ("Ann <ann@person.example>, eve@evil.example", Fetch.SKIP),
        ("Person, Ann <ann@person.example>", Fetch.WHOLE),
        ("Friends: ann@person.example;", Fetch.SKIP),
        ("ann@person.example@evil.example", Fetch.SKIP),
        ("<ann@person.example> <eve@evil.example>", Fetch.SKIP),
        ("", Fetch.SKIP),
        ("(" * 60_000, Fetch.SKIP),
        ("<" * 60_000, Fetch.SKIP),
        ('"' * 20_000, Fetch.SKIP),
        ("agent@sender.example", Fetch.SKIP),
        ("MAILER-DAEMON@mx.example", Fetch.REPORT),
        ("Mail Delivery Subsystem <mailer-daemon@googlemail.com>", Fetch.REPORT),
        ("<>", Fetch.SKIP),
    ],
)
def test_whose_mail_is_fetched(endpoint: PersistentAgentCommsEndpoint, sender: str, fetch: Fetch) -> None:
    assert fetched(endpoint, From=sender) == fetch


@pytest.mark.parametrize(
    "fields",
    [
        {"Return_Path": "<>"},
        {"Content_Type": "multipart/report; report-type=feedback-report"},
        {"Auto_Submitted": "auto-replied"},
        {"X_Failed_Recipients": "bob@rcpt.example"},
        {"Subject": "Undelivered Mail Returned to Sender"},
        {"From": "staff@hotmail.com"},
    ],
    ids=str,
)
def test_what_may_be_a_report_is_fetched_whoever_wrote_it(
    endpoint: PersistentAgentCommsEndpoint, fields: dict[str, str]
) -> None:
    assert fetched(endpoint, **({"From": "postmaster@else.example"} | fields)) == Fetch.REPORT
    assert fetched(endpoint, From="eve@evil.example") == Fetch.SKIP


def test_a_strangers_answer_to_a_mail_of_ours_is_fetched(endpoint: PersistentAgentCommsEndpoint) -> None:
    ours = api.send_agent_email(from_endpoint=endpoint, to=ANN, subject="Ask", body="Well?")
    ours.refresh_from_db()
    answer: dict[str, Any] = {"From": "bob@else.example"}
    assert fetched(endpoint, **answer, In_Reply_To=ours.rfc_message_id) == Fetch.REPORT
    assert fetched(endpoint, **answer, References=f"<a@b> {ours.rfc_message_id}") == Fetch.REPORT
    assert fetched(endpoint, **answer, References="<a@b>") == Fetch.SKIP
    assert fetched(endpoint, From=ANN, Message_ID=ours.rfc_message_id) == Fetch.SKIP


def test_of_what_is_too_large_the_header_is_kept_where_the_agent_waits_for_it(
    endpoint: PersistentAgentCommsEndpoint, settings: Any
) -> None:
    settings.GOBII_MAX_RECEIVED_BYTES = 999
    assert fetched(endpoint) == Fetch.HEADER
    assert fetched(endpoint, size=999) == Fetch.WHOLE
    verdict = wanted(endpoint, read_fields(mail(From="MAILER-DAEMON@mx.example")), 1_000)
    assert verdict.fetch == Fetch.SKIP and "1,000 bytes" in verdict.reason


def test_nobody_reaches_an_agent_that_listens_to_its_owner_alone(
    endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent, django_user_model: Any
) -> None:
    agent.whitelist_policy = PersistentAgent.WhitelistPolicy.DEFAULT
    agent.user = django_user_model.objects.create_user("owner", email="Owner@person.example")
    agent.save()
    assert fetched(endpoint) == Fetch.SKIP
    assert fetched(endpoint, From="Me <owner@PERSON.example>") == Fetch.WHOLE


@pytest.mark.parametrize(
    "entry", [{"allow_inbound": False}, {"is_active": False}, {"channel": "sms"}], ids=str
)
def test_an_entry_of_the_list_counts_for_mail_that_comes_in_while_it_is_in_force(
    endpoint: PersistentAgentCommsEndpoint, entry: dict[str, Any]
) -> None:
    assert fetched(endpoint) == Fetch.WHOLE
    CommsAllowlistEntry.objects.update(**entry)
    assert fetched(endpoint) == Fetch.SKIP


def test_it_costs_two_statements_at_most(
    endpoint: PersistentAgentCommsEndpoint, django_assert_max_num_queries: Any
) -> None:
    header = read_fields(mail(References="<a@b> " * 500))
    ready = PersistentAgentCommsEndpoint.objects.select_related("owner_agent__user").get(pk=endpoint.pk)
    with django_assert_max_num_queries(3):
        wanted(ready, header, 1_000)
