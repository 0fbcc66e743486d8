"""The outside endpoints of addresses: found by the index on lower-cased addresses, made where missing."""

import uuid
from collections.abc import Set

from gobii_email.models import CommsChannel, PersistentAgentCommsEndpoint
from gobii_email.models.bulk_rows import insert_missing
from gobii_email.models.cursors import among, bound_cursor, stored_uuid


def contacts_of(wanted: Set[str]) -> dict[str, uuid.UUID]:
    """An outside endpoint for each of `wanted`, normalised addresses; the missing made in one statement."""
    found = _known(wanted)
    missing = sorted(wanted - found.keys())
    if not missing:
        return found
    made = {address: uuid.uuid4() for address in missing}
    rows = [(key, CommsChannel.EMAIL.value, address) for address, key in made.items()]
    if insert_missing(PersistentAgentCommsEndpoint, ("id", "channel", "address"), rows) == len(rows):
        return found | made
    return found | _known(set(missing))


def _known(wanted: Set[str]) -> dict[str, uuid.UUID]:
    # By the expression that is indexed: stored addresses are in lower case.
    among_them, parameters = among(list(wanted))
    with bound_cursor() as cursor:
        cursor.execute(
            f"SELECT address, id FROM {PersistentAgentCommsEndpoint._meta.db_table} WHERE lower(address) "
            f"{among_them} AND channel = '{CommsChannel.EMAIL}' AND owner_agent_id IS NULL",
            parameters,
        )
        return {address: stored_uuid(key) for address, key in cursor.fetchall()}
