"""What is let go when it is old, what never is, and that nothing is left behind."""

import dataclasses
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django.utils import timezone

from gobii_email import api
from gobii_email.conf import config
from gobii_email.models import (
    AgentEmailAccount,
    ConnectionTest,
    FrozenMessage,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
    ReceivedMail,
)
from gobii_email.services import intervene, keep_files
from gobii_email.services import prune as module
from gobii_email.services.prune import prune, what_is_due
from tests.entrypoints.commands import deliver_all, into_doubt, run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("endpoint", "doorbell")]

OLD = timedelta(days=40)


@pytest.fixture(autouse=True)
def kept_for_a_month(settings: Any) -> None:
    for name in ("BODIES", "EVENTS", "MESSAGES", "RECEIVED", "TESTS"):
        setattr(settings, f"GOBII_KEEP_{name}", "")


def keep(settings: Any, *names: str, span: str = "30d") -> None:
    for name in names:
        setattr(settings, f"GOBII_KEEP_{name}", span)


def message(subject: str = "Hello", *, is_delivered: bool = True, age: timedelta = OLD, **more: Any) -> Any:
    made = api.send_agent_email(
        from_endpoint="agent@sender.example",
        to="to@rcpt.example",
        subject=subject,
        body="Secret plan",
        **more,
    )
    if is_delivered:
        deliver_all()
    return aged(made, age)


def aged(row: Any, age: timedelta) -> Any:
    at = timezone.now() - age
    PersistentAgentMessage.objects.filter(pk=row.pk).update(timestamp=at)
    with connection.cursor() as cursor:
        # Only tests make events older: a trigger forbids it to everybody else.
        from gobii_email.models import guards

        guards.take_down(connection)
        cursor.execute("UPDATE gobii_email_outboundmessageevent SET at = %s", [at])
        guards.put_up(connection)
    return PersistentAgentMessage.objects.get(pk=row.pk)


def received(state: str = "report", raw: bytes | None = b"From: x\r\n\r\nbody", **more: Any) -> ReceivedMail:
    number = ReceivedMail.objects.count()
    return ReceivedMail.objects.create(
        endpoint=PersistentAgentCommsEndpoint.objects.get(address="agent@sender.example"),
        folder="INBOX",
        uid_validity=1,
        uid=number,
        raw=raw,
        state=state,
        stored_at=timezone.now() - OLD,
        **more,
    )


def test_everything_is_kept_unless_a_setting_says_otherwise() -> None:
    message()
    received()
    assert prune() == {}
    assert FrozenMessage.objects.count() == ReceivedMail.objects.filter(raw__isnull=False).count() == 1


def test_bodies_go_and_what_became_of_the_message_stays(settings: Any) -> None:
    keep(settings, "BODIES")
    old, young = message("old"), message("young", age=timedelta(days=29))
    prune()
    old.refresh_from_db()
    young.refresh_from_db()
    assert (old.body, old.latest_status) == ("", "delivered") and old.emptied_at is not None
    assert young.body and FrozenMessage.objects.get().message_id == young.pk
    assert old.events.exists() and old.recipients.get().status == "delivered"


def test_a_file_goes_with_the_body(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = tmp_path
    keep(settings, "BODIES")
    row = PersistentAgentMessageAttachment(message=message(), filename="plan.txt", file_size=4)
    row.file.save("plan.txt", ContentFile(b"plan"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    prune()
    row.refresh_from_db()
    assert not row.file and row.filename == "plan.txt"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("setting", ["BODIES", "MESSAGES"])
def test_a_file_that_two_messages_name_goes_with_the_last(settings: Any, tmp_path: Any, setting: str) -> None:
    settings.MEDIA_ROOT = tmp_path
    keep(settings, setting)
    old, young = message("old"), message("young", age=timedelta(days=29))
    first = PersistentAgentMessageAttachment(message=old, filename="plan.txt")
    first.file.save("plan.txt", ContentFile(b"plan"))
    second = PersistentAgentMessageAttachment.objects.create(
        message=young, filename="plan.txt", file=first.file.name
    )
    prune()
    assert not PersistentAgentMessageAttachment.objects.filter(pk=first.pk).exclude(file="").exists()
    assert second.file.read() == b"plan"
    aged(young, OLD)
    prune()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_two_old_messages_name_goes_with_both(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = tmp_path
    keep(settings, "MESSAGES")
    row = PersistentAgentMessageAttachment(message=message("one"), filename="plan.txt")
    row.file.save("plan.txt", ContentFile(b"plan"))
    PersistentAgentMessageAttachment.objects.create(message=message("two"), file=row.file.name)
    assert prune()["messages"] == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_removed_keeps_its_message_and_no_other(
    settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MEDIA_ROOT = tmp_path
    keep(settings, "BODIES", "MESSAGES")
    stuck, free = message("stuck"), message("free")
    row = PersistentAgentMessageAttachment(message=stuck, filename="plan.txt")
    row.file.save("plan.txt", ContentFile(b"plan"))

    def refuses(names: Any) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(keep_files, "drop", refuses)
    prune()
    assert set(PersistentAgentMessage.objects.all()) == {stuck}
    assert PersistentAgentMessage.objects.get().body and free.pk != stuck.pk


@pytest.mark.parametrize("names", [("BODIES",), ("EVENTS",), ("MESSAGES",), ("BODIES", "EVENTS", "MESSAGES")])
def test_what_is_not_over_stays_whole(settings: Any, names: tuple[str, ...]) -> None:
    keep(settings, *names)
    waiting = message("waiting", is_delivered=False)
    doubtful = message("doubtful", is_delivered=False)
    into_doubt(doubtful)
    never_submitted = PersistentAgentMessage.objects.create(body="A draft")
    aged(never_submitted, OLD)
    before = OutboundMessageEvent.objects.count()
    assert not any(prune().values())
    assert {waiting, doubtful, never_submitted} == set(PersistentAgentMessage.objects.exclude(body=""))
    assert FrozenMessage.objects.count() == 2 and OutboundMessageEvent.objects.count() == before


def test_a_message_goes_with_all_that_is_known_of_it(settings: Any) -> None:
    keep(settings, "MESSAGES")
    old = message(idempotency_key="once")
    reply = PersistentAgentMessage.objects.create(body="Thanks", parent=old, is_outbound=False)
    young = message("young", age=timedelta(days=1), idempotency_key="again")
    assert prune()["messages"] == 1
    reply.refresh_from_db()
    assert reply.parent is None
    for model in (FrozenMessage, OutboundMessageAttempt, OutboundMessageRecipient):
        assert set(model.objects.values_list("message", flat=True)) == {young.pk}
    assert set(OutboundMessageEvent.objects.values_list("message", flat=True)) == {young.pk}


def test_a_key_counts_as_long_as_its_message(settings: Any) -> None:
    keep(settings, "BODIES", "EVENTS")
    old = message(idempotency_key="once")
    prune()
    again = message(idempotency_key="once")
    assert again.pk == old.pk and OutboundMessageAttempt.objects.count() == 1


def test_events_go_in_order_and_those_of_what_is_open_stay(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    keep(settings, "EVENTS")
    waiting = message("waiting", is_delivered=False)
    over = PersistentAgentMessage.objects.get(pk=message("over", is_delivered=False).pk)
    intervene.cancel(over)
    aged(over, OLD)
    assert over.events.count() >= 2 and waiting.events.exists()
    assert prune()["events"] >= 2
    assert not over.events.exists() and waiting.events.exists()


def test_received_mail_loses_its_bytes_first_and_its_row_with_the_messages(settings: Any) -> None:
    mail = received()
    unread, untold = received("stored"), received("received")
    keep(settings, "RECEIVED")
    assert prune() == {"received": 1}
    mail.refresh_from_db()
    assert mail.raw is None
    keep(settings, "MESSAGES")
    assert prune()["received_rows"] == 1
    assert set(ReceivedMail.objects.filter(raw__isnull=False)) == {unread, untold}


def test_reports_of_tests_go(settings: Any, account: AgentEmailAccount) -> None:
    keep(settings, "TESTS")
    now = timezone.now()
    for age in (OLD, timedelta(days=1)):
        ConnectionTest.objects.create(account=account, protocol="smtp", fingerprint="", started_at=now - age)
    assert prune() == {"tests": 1}
    assert ConnectionTest.objects.get().started_at > now - OLD


def test_what_is_not_kept_any_more_cannot_be_sent_again(settings: Any) -> None:
    keep(settings, "BODIES")
    row = message()
    prune()
    with pytest.raises(intervene.NotPossible, match="not kept any more"):
        intervene.retry(row)


def test_a_round_ends_in_time(settings: Any) -> None:
    keep(settings, "BODIES")
    message()
    assert prune(seconds=0) == {"bodies": 0}


def test_a_backlog_of_one_kind_starves_no_other(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies alone would take all the time there is."""
    clock = [0.0]
    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    empty = module._empty

    def slowly(rows: Any, ids: Any) -> int:
        clock[0] += 60
        return empty(rows, ids)

    bodies, *others = module.KINDS
    monkeypatch.setattr(module, "KINDS", [dataclasses.replace(bodies, let_go=slowly), *others])
    for number in range(3):
        message(str(number))
    keep(settings, "BODIES", "EVENTS")
    done = prune(seconds=100)
    assert done["bodies"] == 1 and done["events"] > 0


def test_the_command_counts_first(settings: Any) -> None:
    keep(settings, "BODIES")
    message()
    found = run("email_prune", "--dry-run", "--json").document
    assert found["pruned"] == {"bodies": 1} == what_is_due() and "events" in found["kept_for_ever"]
    assert "bodies: 1 let go" in run("email_prune").out
    assert "GOBII_KEEP_EVENTS" in run("email_prune").out


def test_a_span_that_limits_need_is_refused(settings: Any) -> None:
    from django.core.exceptions import ImproperlyConfigured

    keep(settings, "MESSAGES", span="1d")
    with pytest.raises(ImproperlyConfigured, match="GOBII_KEEP_MESSAGES"):
        config()


def test_beat_has_it_done_by_a_task_that_exists() -> None:
    import celeryconfig
    from worker.tasks import app

    entry = celeryconfig.beat_schedule["prune"]
    assert entry["task"] in app.tasks
    assert entry["options"]["queue"] in {queue.name for queue in celeryconfig.task_queues}


on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="others' locks are waited for on SQLite; run on PostgreSQL too"
)


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_two_rounds_at_once_share_the_work(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    for number in range(12):
        message(str(number))
    keep(settings, "BODIES", "MESSAGES")
    done: list[dict[str, int]] = []

    def once() -> None:
        try:
            done.append(prune())
        finally:
            connection.close()

    threads = [threading.Thread(target=once) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(found["messages"] for found in done) == 12 and not PersistentAgentMessage.objects.exists()


@on_postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("model", [PersistentAgentMessage, OutboundMessageAttempt])
def test_what_somebody_holds_is_passed_over(settings: Any, model: Any) -> None:
    held, free = message("held"), message("free")
    keep(settings, "MESSAGES")
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                field = "pk" if model is PersistentAgentMessage else "message"
                list(model.objects.select_for_update().filter(**{field: held.pk}).values_list("pk"))
                is_held.set()
                is_over.wait(120)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(60)
    try:
        assert prune()["messages"] == 1
        assert PersistentAgentMessage.objects.get().pk == held.pk != free.pk
    finally:
        is_over.set()
        holder.join(60)
    assert prune()["messages"] == 1
