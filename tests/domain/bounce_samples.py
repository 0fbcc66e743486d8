"""Mails in the style of each system that returns mail: own words where the wording is free, example domains.

`bounces/` holds one file for each, `expected.jsonl` what it says. All return the same header, so that each
that returns one must lead to the same message and attempt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

MESSAGE_ID = "<7d1c-41@sender.example>"
ATTEMPT_ID = "3b0e6a52-8a55-4e39-9a0c-6f6d0a0c2c11"
SENDER = "agent@sender.example"
NOBODY = "nobody@there.example"
FULL = "full@there.example"

_FOLDER = Path(__file__).parent / "bounces"


@dataclass(frozen=True)
class Sample:
    """`recipients` as (address, status or None if none is written); `has_copy` if the header comes back,
    `is_named` if the report names the message in its own words.
    """

    name: str
    raw: bytes
    kind: str
    recipients: tuple[tuple[str, str | None], ...]
    has_copy: bool
    is_named: bool


def read_file(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def _sample(row: dict) -> Sample:
    name = row["file"]
    recipients = tuple((address, status) for address, status in row["recipients"])
    return Sample(
        name.removesuffix(".eml"),
        read_file(name),
        row["kind"],
        recipients,
        row["has_copy"],
        row.get("is_named", False),
    )


SAMPLES = [_sample(json.loads(line)) for line in (_FOLDER / "expected.jsonl").read_text().splitlines()]
COMPLAINT = read_file("complaint.eml")
DAMAGED = read_file("damaged-parts.eml")
