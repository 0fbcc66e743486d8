"""The queue's statements find their rows by index, however many others there are."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email.models import (
    FrozenMessage,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.queue import Claim, claim, due_lanes

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "postgresql", reason="plans are PostgreSQL's; run there as well"),
]

MAILS = 5_000


@pytest.fixture
def backlog(endpoint: PersistentAgentCommsEndpoint) -> PersistentAgentCommsEndpoint:
    now = timezone.now()
    messages = [
        PersistentAgentMessage(id=uuid.uuid4(), from_endpoint=endpoint, body="B") for _ in range(MAILS)
    ]
    PersistentAgentMessage.objects.bulk_create(messages)
    FrozenMessage.objects.bulk_create(
        FrozenMessage(message=one, mime=b"M" * 1500, size=1500) for one in messages
    )
    OutboundMessageAttempt.objects.bulk_create(
        OutboundMessageAttempt(
            message=one,
            number=1,
            from_endpoint=endpoint,
            priority=number % 2,
            queued_at=now - timedelta(hours=1),
            not_before=now - timedelta(hours=1),
            due_at=now - timedelta(seconds=number),
        )
        for number, one in enumerate(messages)
    )
    with connection.cursor() as cursor:
        for model in (PersistentAgentMessage, FrozenMessage, OutboundMessageAttempt):
            cursor.execute(f"ANALYZE {model._meta.db_table}")
    return endpoint


@contextmanager
def plans() -> Iterator[list[str]]:
    """The plan of each statement, taken just before it is carried out."""
    found: list[str] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().startswith("WITH"):
            with connection.cursor() as cursor:
                inner = cursor.cursor
                inner.execute(f"EXPLAIN {sql}", params)
                found.append("\n".join(row[0] for row in inner.fetchall()))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        yield found


def test_a_claim_reads_only_what_it_takes(backlog: PersistentAgentCommsEndpoint) -> None:
    now = timezone.now()
    with plans() as found:
        works = claim(Claim(backlog.pk, 20, "worker", now, now + timedelta(minutes=1)))
    assert len(works) == 20
    assert found[0].count("attempt_turn_idx") >= 2
    assert "Seq Scan" not in found[0], found[0]


def test_the_dispatcher_steps_from_lane_to_lane(backlog: PersistentAgentCommsEndpoint) -> None:
    with plans() as found:
        assert len(due_lanes(timezone.now(), 200)) == 1
    assert "attempt_turn_idx" in found[0]
    assert "Seq Scan on gobii_email_outboundmessageattempt" not in found[0], found[0]
