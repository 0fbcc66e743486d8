"""smtplib and nothing else, one mail after the other: `python -m benchmarks.peers.bare WAY FILE`.

WAY is new, reused or pipelined; FILE has the facts as JSON. Nothing is queued and nothing is written down.
"""

import json
import smtplib
import sys
from pathlib import Path

from benchmarks.peers.celery_task import log_in
from benchmarks.peers.fill import own_mime


def pipelined(client: smtplib.SMTP, sender: str, recipient: str, mime: bytes) -> None:
    """Envelope and DATA together, then the body."""
    client.sock.sendall(b"MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (sender.encode(), recipient.encode()))
    replies = [client.getreply()[0] for _ in range(3)]
    client.sock.sendall(mime + b".\r\n")
    if [*replies, client.getreply()[0]] != [250, 250, 354, 250]:
        raise RuntimeError("the server refused")


def run(way: str, facts: dict[str, object]) -> None:
    sender = facts["senders"][0]
    client = None if way == "new" else log_in(sender)
    for number in range(facts["count"]):
        mime, recipient = own_mime(facts, number), f"to{number}@rcpt.example"
        if way == "pipelined":
            pipelined(client, sender, recipient, mime)
        elif way == "reused":
            client.sendmail(sender, [recipient], mime)
        else:
            fresh = log_in(sender)
            fresh.sendmail(sender, [recipient], mime)
            fresh.quit()


if __name__ == "__main__":
    run(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
