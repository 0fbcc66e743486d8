"""The labelled replies that contributors share: verdict right in 97 %, reaction in 85 %."""

import json
from pathlib import Path

import pytest

from gobii_email.domain.classification import read_reply
from gobii_email.domain.smtp_replies import Stage, parse_reply

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus" / "replies.jsonl"
STAGES = {"CONNECT": "connect", "BANNER": "connect", "STARTTLS": "tls", "QUEUE": "dot"}
VERDICTS = {"transient": "temporary", "permanent": "permanent"}
REACTIONS = {
    "retry-later": "retry",
    "give-up": "give_up",
    "suspend-account": "hold_account",
    "slow-down": "slow_down",
}


def test_the_shared_labels_are_met():
    if not CORPUS.exists():
        pytest.skip(f"NOT CHECKED: no labelled replies at {CORPUS}")
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    verdicts = reactions = 0
    for row in rows:
        stage = Stage(STAGES.get(row["phase"], row["phase"].lower()))
        reading = read_reply(stage, parse_reply(row["reply"]))
        is_verdict_right = reading.verdict == VERDICTS[row["class"]]
        is_reaction_right = reading.reaction == REACTIONS[row["sender_should"]]
        verdicts += is_verdict_right
        reactions += is_reaction_right
        if not (is_verdict_right and is_reaction_right):
            print(f"missed {row['id']}: {reading.verdict}/{reading.reaction} for {row['reply']}")
    assert verdicts >= 0.97 * len(rows)
    assert reactions >= 0.85 * len(rows)
