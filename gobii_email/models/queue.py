"""The queue's hot statements: many attempts at once, written for each database by hand.

Everything here is conditional on status and lease token, and answers what it still found. On PostgreSQL each
function is one statement, prepared on its connection; on SQLite it is one transaction of small ones, which
cost it no round trips. What the values mean is decided in services.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import connection, models, transaction

from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus, Move, RecipientStatus, after
from gobii_email.models.attempts import OutboundMessageAttempt, OutboundMessageEvent
from gobii_email.models.cursors import bound_cursor, is_postgres, plain, plain_here
from gobii_email.models.lanes import Lane
from gobii_email.models.messages import FrozenMessage, OutboundMessageRecipient, PersistentAgentMessage

LOADED_AT_ONCE = 256 * 1024
"""Larger messages are not loaded with their attempt, but when their turn comes."""

A = OutboundMessageAttempt._meta.db_table
M = PersistentAgentMessage._meta.db_table
F = FrozenMessage._meta.db_table
L = Lane._meta.db_table
R = OutboundMessageRecipient._meta.db_table
E = OutboundMessageEvent._meta.db_table

QUEUED, SENDING = AttemptStatus.QUEUED, after(AttemptStatus.QUEUED, Move.CLAIMED)
SENT = after(SENDING, Move.ACCEPTED)


@dataclass(slots=True)
class Work:
    """A claimed attempt with what its delivery needs. `mime` is None where it is large: see `load_mime`."""

    id: uuid.UUID
    message_id: uuid.UUID
    number: int
    addresses: list[str]
    held_code: str
    expires_at: datetime | None
    had_account: bool
    from_address: str
    owner_agent_id: uuid.UUID | None
    traceparent: str
    to_count: int
    cc_count: int
    size: int
    mime: bytes | None
    not_before: datetime | None = None
    token: uuid.UUID = uuid.UUID(int=0)


_COLUMNS = (
    "a.id, a.message_id, a.number, a.addresses, a.held_code, a.expires_at, m.had_account, m.from_address, "
    "m.owner_agent_id, m.traceparent, f.to_count, f.cc_count, f.size, "
    f"CASE WHEN f.size <= {LOADED_AT_ONCE} THEN f.mime END, a.not_before"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose mail to take: up to `limit` due attempts of `endpoint_id` (None: of endpoints that are gone).

    `token` is the turn's own name, by which the limiter knows it, also when restored from the rows.
    """

    endpoint_id: uuid.UUID | None
    limit: int
    owner: str
    now: datetime
    lease_until: datetime
    token: uuid.UUID = field(default_factory=uuid.uuid4)


def claim(wanted: Claim) -> list[Work]:
    """Takes due attempts under the turn's lease, the interactive before the bulk, the oldest first."""
    rows = _claim_postgres(wanted) if is_postgres() else _claim_sqlite(wanted)
    for work in rows:
        work.token = wanted.token
    return rows


def _due(select: str, lane: str, priority: int) -> str:
    return (
        f"SELECT {select} FROM {A} WHERE {lane} AND status = '{QUEUED}' AND priority = {priority} "
        "AND due_at <= %s AND not_before <= %s ORDER BY due_at LIMIT "
    )


def _claim_postgres(wanted: Claim) -> list[Work]:
    lane = "from_endpoint_id IS NULL" if wanted.endpoint_id is None else "from_endpoint_id = %s"
    # The number itself: of an unknown one the planner thinks as a tenth of the table.
    most = int(wanted.limit)
    statement = f"""
        WITH first AS ({_due("id, due_at, priority", lane, 0)} {most} FOR UPDATE SKIP LOCKED),
        second AS (
            {_due("id, due_at, priority", f"(SELECT count(*) FROM first) < {most} AND {lane}", 1)} {most}
            FOR UPDATE SKIP LOCKED
        ),
        a AS (
            UPDATE {A} AS x SET status = '{SENDING}', lease_token = %s, lease_owner = %s, started_at = %s,
                due_at = %s, stage = '', marked_at = NULL
            FROM (SELECT * FROM first UNION ALL SELECT * FROM second LIMIT {most}) AS p WHERE x.id = p.id
            RETURNING x.id, x.message_id, x.number, x.addresses, x.held_code, x.expires_at, x.not_before,
                p.due_at AS was_due, p.priority
        ),
        m AS (
            UPDATE {M} AS y SET latest_status = '{MessageStatus.SENDING}' FROM a WHERE y.id = a.message_id
            RETURNING y.id, y.had_account, y.from_address, y.owner_agent_id, y.traceparent
        )
        SELECT {_COLUMNS} FROM a JOIN m ON m.id = a.message_id JOIN {F} AS f ON f.message_id = a.message_id
        ORDER BY a.priority, a.was_due"""
    who = [] if wanted.endpoint_id is None else [wanted.endpoint_id]
    due = [*who, wanted.now, wanted.now]
    values = [*due, *due, wanted.token, wanted.owner[:128], wanted.now, wanted.lease_until]
    with bound_cursor() as cursor:
        cursor.execute(statement, values)
        return [Work(*row[:3], json.loads(row[3]), *row[4:]) for row in cursor.fetchall()]


def _claim_sqlite(wanted: Claim) -> list[Work]:
    lane = "from_endpoint_id IS NULL" if wanted.endpoint_id is None else "from_endpoint_id = %s"
    who = [] if wanted.endpoint_id is None else [plain(wanted.endpoint_id)]
    now = plain(wanted.now)
    with transaction.atomic(), connection.cursor() as cursor:
        ids: list[str] = []
        for priority in (0, 1):
            cursor.execute(_due("id", lane, priority) + "%s", [*who, now, now, wanted.limit - len(ids)])
            ids += [row[0] for row in cursor.fetchall()]
        if not ids:
            return []
        places = ", ".join(["%s"] * len(ids))
        cursor.execute(
            f"UPDATE {A} SET status = '{SENDING}', lease_token = %s, lease_owner = %s, started_at = %s, "
            f"due_at = %s, stage = '', marked_at = NULL WHERE id IN ({places})",
            [plain(wanted.token), wanted.owner[:128], now, plain(wanted.lease_until), *ids],
        )
        cursor.execute(
            f"UPDATE {M} SET latest_status = '{MessageStatus.SENDING}' WHERE id IN "
            f"(SELECT message_id FROM {A} WHERE id IN ({places}))",
            ids,
        )
        cursor.execute(
            f"SELECT {_COLUMNS} FROM {A} AS a JOIN {M} AS m ON m.id = a.message_id "
            f"JOIN {F} AS f ON f.message_id = a.message_id WHERE a.id IN ({places})",
            ids,
        )
        found = {row[0]: _from_sqlite(row) for row in cursor.fetchall()}
    return [found[pk] for pk in ids]


def _from_sqlite(row: Sequence[Any]) -> Work:
    return Work(
        uuid.UUID(row[0]), uuid.UUID(row[1]), row[2], json.loads(row[3]), row[4], _moment(row[5]),
        bool(row[6]), row[7], uuid.UUID(row[8]) if row[8] else None, row[9], *row[10:14], _moment(row[14]),
    )  # fmt: skip


def load_mime(message_id: uuid.UUID) -> bytes:
    """The frozen bytes of one message."""
    if not is_postgres():
        return bytes(FrozenMessage.objects.values_list("mime", flat=True).get(pk=message_id))
    with bound_cursor() as cursor:
        # In binary form: as text it would be twice as long on its way.
        cursor.cursor.execute(f"SELECT mime FROM {F} WHERE message_id = %s", [message_id], binary=True)
        return bytes(cursor.fetchone()[0])


def due_lanes(now: datetime, limit: int) -> list[OutboundMessageAttempt]:
    """The first due attempt of each lane that may be looked at now, of `limit` lanes at most.

    Steps from lane to lane by the index, so it costs the same with any number of mails in them.
    """
    return list(
        OutboundMessageAttempt.objects.filter(pk__in=_heads(now, limit)).only(
            "from_endpoint_id", "number", "due_at", "queued_at"
        )
    )


def _heads(now: datetime, limit: int) -> list[Any]:
    queued = f"FROM {A} AS q WHERE q.status = '{QUEUED}'"
    head = f"(SELECT q.id {queued} AND q.from_endpoint_id %s AND q.priority = %d AND q.due_at <= %%s "
    head += "ORDER BY q.due_at LIMIT 1)"
    of_lane, of_nobody = "= lane.endpoint", "IS NULL"
    first, second = head % (of_lane, 0), head % (of_lane, 1)
    statement = f"""
        WITH RECURSIVE lane(endpoint) AS (
            SELECT (SELECT q.from_endpoint_id {queued} AND q.from_endpoint_id IS NOT NULL
                    ORDER BY q.from_endpoint_id LIMIT 1)
            UNION ALL
            SELECT (SELECT q.from_endpoint_id {queued} AND q.from_endpoint_id > lane.endpoint
                    ORDER BY q.from_endpoint_id LIMIT 1)
            FROM lane WHERE lane.endpoint IS NOT NULL
        ),
        heads(id) AS (
            SELECT COALESCE({first}, {second}) FROM lane LEFT JOIN {L} AS l ON l.endpoint_id = lane.endpoint
            WHERE lane.endpoint IS NOT NULL AND (l.look_at IS NULL OR l.look_at <= %s)
            UNION ALL SELECT COALESCE({head % (of_nobody, 0)}, {head % (of_nobody, 1)})
        )
        SELECT id FROM heads WHERE id IS NOT NULL LIMIT %s"""
    with connection.cursor() as cursor:
        cursor.execute(statement, [*[plain_here(now)] * 5, limit])
        return [row[0] for row in cursor.fetchall()]


def hand_out(endpoint_ids: Sequence[uuid.UUID], *, now: datetime, look_at: datetime) -> set[uuid.UUID]:
    """Keeps everybody else from these lanes until `look_at`; answers those that nobody else had taken."""
    if not endpoint_ids:
        return set()
    rows = ", ".join(["(%s, %s, '', '')"] * len(endpoint_ids))
    values = [plain_here(value) for pk in sorted(endpoint_ids) for value in (pk, look_at)]
    statement = (
        f"INSERT INTO {L} (endpoint_id, look_at, code, reason) VALUES {rows} ON CONFLICT (endpoint_id) "
        "DO UPDATE SET look_at = excluded.look_at, code = '', reason = '' "
        f"WHERE {L}.look_at IS NULL OR {L}.look_at <= %s RETURNING endpoint_id"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, plain_here(now)])
        return {row[0] if isinstance(row[0], uuid.UUID) else uuid.UUID(row[0]) for row in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Mark:
    """How far an attempt has come: `stage` dot, its server may have it; connect, a connection is opened."""

    id: uuid.UUID
    token: uuid.UUID
    provider: str
    stage: str = "dot"


def mark(marks: Sequence[Mark], *, now: datetime) -> set[uuid.UUID]:
    """Commits how far these attempts have come; answers those that were still ours.

    From a committed dot on the server may have the message. Of both stages of a row only the dot is written.
    """
    dots = {one.id for one in marks if one.stage == "dot"}
    latest = [one for one in marks if one.stage == "dot" or one.id not in dots]
    if is_postgres():
        statement = f"""
            UPDATE {A} AS x SET marked_at = CASE g.stage WHEN 'dot' THEN %s END, stage = g.stage,
                provider = g.provider
            FROM json_to_recordset(%s::json) AS g(id uuid, token uuid, provider text, stage text)
            WHERE x.id = g.id AND x.lease_token = g.token AND x.status = '{SENDING}'
                AND x.marked_at IS NULL RETURNING x.id"""
        with bound_cursor() as cursor:
            cursor.execute(statement, [now, _records(latest)])
            return {row[0] for row in cursor.fetchall()}
    found = set()
    with transaction.atomic(), connection.cursor() as cursor:
        for one in latest:
            cursor.execute(
                f"UPDATE {A} SET marked_at = %s, stage = %s, provider = %s WHERE id = %s "
                f"AND lease_token = %s AND status = '{SENDING}' AND marked_at IS NULL",
                [
                    plain(now) if one.stage == "dot" else None,
                    one.stage,
                    one.provider,
                    plain(one.id),
                    plain(one.token),
                ],
            )
            if cursor.rowcount:
                found.add(one.id)
    return found


def narrow(work: Work, addresses: Sequence[str]) -> bool:
    """Makes the attempt one for `addresses` alone, and begins it; its other recipients wait, deferred."""
    with transaction.atomic():
        row = OutboundMessageAttempt.objects.held_by(work.id, work.token)
        if not row.update(addresses=list(addresses), stage="connect"):
            return False
        others = OutboundMessageRecipient.objects.filter(attempt_id=work.id).exclude(address__in=addresses)
        others.update(status=RecipientStatus.DEFERRED)
    return True


def release(works: Sequence[Work]) -> None:
    """Gives claimed attempts back unsent, to the places in the queue that they had."""
    ids, tokens = [work.id for work in works], {work.token for work in works}
    with transaction.atomic():
        rows = OutboundMessageAttempt.objects.filter(pk__in=ids, lease_token__in=tokens, status=SENDING)
        # In one order everywhere, so that two that change the same rows cannot lock each other out.
        mine = list(rows.order_by("pk").select_for_update().values_list("message_id", flat=True))
        rows.update(
            status=after(SENDING, Move.RELEASED), due_at=models.F("not_before"), started_at=None, stage="",
            lease_token=None,
        )  # fmt: skip
        PersistentAgentMessage.objects.filter(pk__in=mine).update(latest_status=MessageStatus.QUEUED)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A first attempt that its server accepted for everybody it was for."""

    id: uuid.UUID
    token: uuid.UUID
    provider: str
    at: datetime
    code: int | None
    enhanced: str
    reply: str
    queue_id: str
    stage_ms: Mapping[str, int]
    tls: str
    peer: str
    said: str
    data: Mapping[str, object]


_ACCEPTANCE = (
    "id uuid, token uuid, provider text, at timestamptz, code int, enhanced text, reply text, queue_id text, "
    "stage_ms jsonb, tls text, peer text, said text, data jsonb"
)


def write_acceptances(rows: Sequence[Acceptance]) -> set[uuid.UUID]:
    """Ends these attempts as sent, with recipients, message and event; answers those that were still ours."""
    if is_postgres():
        with bound_cursor() as cursor:
            cursor.execute(_ACCEPT_POSTGRES, [_records(rows)])
            return {row[0] for row in cursor.fetchall()}
    with transaction.atomic(), connection.cursor() as cursor:
        return {row.id for row in rows if _accept_sqlite(cursor, row)}


_ACCEPT_POSTGRES = f"""
    WITH g AS (SELECT * FROM json_to_recordset(%s::json) AS g({_ACCEPTANCE})),
    done AS (
        UPDATE {A} AS x SET status = '{SENT}', provider = g.provider, stage = '', verdict = 'accepted',
            scope = '', smtp_code = g.code, enhanced_status = g.enhanced, reply = g.reply, error_code = '',
            error_message = '', provider_message_id = g.queue_id, stage_ms = g.stage_ms,
            tls = g.tls, peer_address = g.peer, finished_at = g.at, sent_at = g.at, due_at = NULL
        FROM g WHERE x.id = g.id AND x.lease_token = g.token AND x.status = '{SENDING}'
        RETURNING x.id, x.message_id, g.at, g.code, g.enhanced, g.reply, g.said, g.data
    ),
    r AS (
        UPDATE {R} AS y SET status = '{RecipientStatus.ACCEPTED}', smtp_code = done.code,
            enhanced_status = done.enhanced, reply = done.reply FROM done WHERE y.attempt_id = done.id
    ),
    m AS (
        UPDATE {M} AS z SET latest_status = '{MessageStatus.SENT}', latest_error_code = '',
            latest_error_message = '', latest_sent_at = done.at FROM done WHERE z.id = done.message_id
    ),
    e AS (
        INSERT INTO {E} (message_id, attempt_id, at, event, text, data)
        SELECT message_id, id, at, '{SENT}', said, data FROM done
    )
    SELECT id FROM done"""


def _accept_sqlite(cursor: Any, row: Acceptance) -> bool:
    pk, token, at = plain(row.id), plain(row.token), plain(row.at)
    cursor.execute(
        f"UPDATE {A} SET status = '{SENT}', provider = %s, stage = '', verdict = 'accepted', scope = '', "
        "smtp_code = %s, enhanced_status = %s, reply = %s, error_code = '', error_message = '', "
        "provider_message_id = %s, stage_ms = %s, tls = %s, peer_address = %s, finished_at = %s, "
        f"sent_at = %s, due_at = NULL WHERE id = %s AND lease_token = %s AND status = '{SENDING}'",
        [
            row.provider,
            row.code,
            row.enhanced,
            row.reply,
            row.queue_id,
            json.dumps(row.stage_ms),
            row.tls,
            row.peer,
            at,
            at,
            pk,
            token,
        ],
    )
    if not cursor.rowcount:
        return False
    cursor.execute(
        f"UPDATE {R} SET status = '{RecipientStatus.ACCEPTED}', smtp_code = %s, enhanced_status = %s, "
        "reply = %s WHERE attempt_id = %s",
        [row.code, row.enhanced, row.reply, pk],
    )
    cursor.execute(
        f"UPDATE {M} SET latest_status = '{MessageStatus.SENT}', latest_error_code = '', "
        "latest_error_message = '', latest_sent_at = %s WHERE id = "
        f"(SELECT message_id FROM {A} WHERE id = %s)",
        [at, pk],
    )
    cursor.execute(
        f"INSERT INTO {E} (message_id, attempt_id, at, event, text, data) "
        f"SELECT message_id, id, %s, '{SENT}', %s, %s FROM {A} WHERE id = %s",
        [at, row.said, json.dumps(row.data), pk],
    )
    return True


def _records(rows: Sequence[Mark] | Sequence[Acceptance]) -> str:
    """As one JSON text: many times cheaper to make than arrays of values."""
    return json.dumps([{name: getattr(row, name) for name in row.__slots__} for row in rows], default=str)


def _moment(stored: datetime | None) -> datetime | None:
    """Django's own converter leaves the zone out: it is always UTC."""
    return None if stored is None else stored.replace(tzinfo=UTC)
