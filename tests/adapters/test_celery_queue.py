"""Calls of tasks by name: what stands in the queue of a real broker afterwards."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from kombu import Connection

from gobii_email.adapters.celery_queue import CeleryDoorbell
from gobii_email.ports import INBOUND_QUEUE, SEND_QUEUE, Call
from gobii_email.testing.processes import free_port
from gobii_email.testing.valkey import EmbeddedValkey


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


def doorbell(url: str) -> CeleryDoorbell:
    return CeleryDoorbell(url, url, hint_lifetime=timedelta(seconds=60), breaker_pause=timedelta(seconds=60))


def test_a_call_stands_in_its_own_queue_with_the_id_alone(
    broker: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gobii_email.adapters.celery_queue.PATIENCE", timedelta(seconds=60))
    assert doorbell(broker.url).call([Call("gobii_email.poll_mailbox", "a-1", INBOUND_QUEUE)])
    with Connection(broker.url) as link, link.channel() as channel:
        assert channel.client.llen(SEND_QUEUE) == 0
        message = link.SimpleQueue(INBOUND_QUEUE).get(block=False)
    assert message.headers["task"] == "gobii_email.poll_mailbox"
    assert message.payload[:2] == [["a-1"], {}]


def test_a_call_that_no_broker_takes_says_so_and_raises_nothing() -> None:
    assert not doorbell(f"redis://127.0.0.1:{free_port()}/0").call([Call("any", "a-1", INBOUND_QUEUE)])
