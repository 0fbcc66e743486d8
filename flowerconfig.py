"""Flower as a window: read-only, behind a password, on the loopback address.

Read by `celery -A worker flower`. Each top-level name that Flower knows is one of its options, and
overrides its FLOWER_* variable; only the command line goes further. Tasks carry ids alone, so their
arguments and outcomes may be shown.
"""

import os
import secrets
import sys

from django.conf import settings

from gobii_email.conf import config, read_text

_LOOPBACK = "127.0.0.1"


def _login() -> str:
    """`user:password` from GOBII_FLOWER_AUTH, else one made once and kept in `var/`, for its owner alone."""
    given = read_text("GOBII_FLOWER_AUTH")
    if given:
        if not all(given.partition(":")):
            raise SystemExit("GOBII_FLOWER_AUTH must be user:password")
        return given
    path = settings.VAR / "flower_login"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"operator:{secrets.token_urlsafe(18)}")
    print(
        f"Flower's login is in {path}; set GOBII_FLOWER_AUTH=user:password for another one.", file=sys.stderr
    )
    return path.read_text().strip()


def format_task(task):
    """Hides what tasks of other projects on the same broker carry."""
    if not (task.name or "").startswith("gobii_email."):
        task.args = task.kwargs = task.result = task.exception = task.traceback = "hidden"
    return task


# With it set Flower would answer everybody.
os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)

basic_auth = [_login()]
read_only = True
address = read_text("FLOWER_ADDRESS", _LOOPBACK)
enable_events = config().task_events
max_tasks = 5000
max_workers = 500
purge_offline_workers = 3600
persistent = False
tasks_columns = "name,uuid,state,args,result,received,runtime,worker"
