"""Reading stored mail in processes that kill themselves at named places, for `test_killed_reading`.

`python -m tests.chaos.reading FILE` stores that mail once for each place, has a process die at each, then
reads all of them twice and prints what is there then.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gobii_email.settings")
django.setup()

from django.core.files.storage import default_storage  # noqa: E402
from django.db import connections  # noqa: E402
from django.utils import timezone  # noqa: E402

from gobii_email.models import (  # noqa: E402
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    ReceivedMail,
)
from gobii_email.services import receive, sort_mail  # noqa: E402

PLACES: dict[str, tuple[Any, str, bool]] = {
    "begun": (receive, "_understood", False),
    "understood": (receive, "_write_or_wait", False),
    "files": (receive.keep_files, "keep", True),
    "message": (sort_mail, "take_in", True),
    "written": (sort_mail, "end_mail", True),
    "committed": (sort_mail, "announce", False),
}
"""Where to die: before, or after (True), a function of a module."""


def die_at(place: str) -> None:
    module, name, is_after = PLACES[place]
    original: Callable[..., object] = getattr(module, name)

    def dying(*arguments: Any, **named: Any) -> None:
        if is_after:
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, dying)


def store(path: str) -> list[str]:
    """One mail for each place, as a poll leaves it."""
    agent = PersistentAgent.objects.create(name="Ada")
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="agent@sender.example"
    )
    raw = Path(path).read_bytes()
    rows = [
        ReceivedMail(
            endpoint=endpoint,
            folder="INBOX",
            uid_validity=1,
            uid=uid,
            raw=raw.replace(b"NUMBER", str(uid).encode()),
            stored_at=timezone.now(),
        )
        for uid, _ in enumerate(PLACES)
    ]
    ReceivedMail.objects.bulk_create(rows)
    return [str(row.pk) for row in rows]


def books() -> dict[str, Any]:
    messages = PersistentAgentMessage.objects.filter(is_outbound=False).order_by("subject")
    kept = default_storage.listdir("received")[0]
    return {
        "subjects": [message.subject for message in messages],
        "files": [file.file.read().decode() for message in messages for file in message.attachments.all()],
        "kept": sum(len(default_storage.listdir(f"received/{name}")[1]) for name in kept),
        "states": sorted(ReceivedMail.objects.values_list("state", flat=True)),
        "untold": ReceivedMail.objects.filter(announced_at__isnull=True).count(),
    }


def killed(place: str, key: str) -> bool:
    """Whether a process of its own died at `place` of reading the mail."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        die_at(place)
        receive.receive(key)
        os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def main(path: str) -> None:
    keys = store(path)
    found = {
        "survived": [place for place, key in zip(PLACES, keys, strict=True) if not killed(place, key)],
        "read": [str(receive.receive(key)) for key in keys],
        "read again": [str(receive.receive(key)) for key in keys],
        **books(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
