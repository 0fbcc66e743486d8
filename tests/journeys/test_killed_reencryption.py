"""Encrypting everything anew in a process that is killed, and begun again."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from gobii_email.encryption import new_key
from gobii_email.testing.stack import ROOT

MAILBOXES = 500
MAKE = f"""
import django; django.setup()
from gobii_email.models import *
agent = PersistentAgent.objects.create(name="Ada")
ends = PersistentAgentCommsEndpoint.objects.bulk_create(
    PersistentAgentCommsEndpoint(owner_agent=agent, channel="email", address=f"a{{n}}@sender.example")
    for n in range({MAILBOXES})
)
made = []
for end in ends:
    made.append(AgentEmailAccount(endpoint=end, smtp_host="smtp.sender.example", smtp_port=587))
    made[-1].set_smtp_password("secret of " + end.address)
AgentEmailAccount.objects.bulk_create(made)
"""
# Dies in the middle of a batch, and of what there is to do.
DIE_HALFWAY = f"""
import os, signal
import django; django.setup()
from django.core.management import call_command
from gobii_email.services import reencrypt
real, left = reencrypt._anew, list(range({MAILBOXES} // 2))
def anew(*given):
    left.pop() if left else os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
reencrypt._anew = anew
call_command("email_keys", "reencrypt")
"""
READ = """
import django; django.setup()
from gobii_email.models import *
rows = AgentEmailAccount.objects.select_related("endpoint")
print(sum(row.get_smtp_password().reveal() == "secret of " + row.endpoint.address for row in rows))
"""


def test_a_killed_run_loses_nothing_and_is_finished_by_the_next(tmp_path: Path) -> None:
    old, new = new_key("old"), new_key("new")
    database = tmp_path / "mail.sqlite3"
    env = os.environ | {
        "DATABASE_URL": f"sqlite:///{database}",
        "GOBII_VAR": str(tmp_path),
        "GOBII_ENCRYPTION_KEY": old,
        "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
    }
    python = [sys.executable, "-W", "ignore"]
    command = [*python, "manage.py", "email_keys", "reencrypt"]

    def run(*arguments: str, ring: str) -> str:
        found = subprocess.run(
            arguments,
            cwd=ROOT,
            env=env | {"GOBII_ENCRYPTION_KEY": ring},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    def moved() -> int:
        with sqlite3.connect(database, timeout=10) as rows:
            table, key = "gobii_email_agentemailaccount", "substr(smtp_password_encrypted, 3, 3)"
            return int(rows.execute(f"select count(*) from {table} where {key} = ?", (b"new",)).fetchone()[0])

    run(*python, "manage.py", "migrate", "-v0", ring=old)
    run(*python, "-c", MAKE, ring=old)
    killed = subprocess.run(
        [*python, "-c", DIE_HALFWAY],
        cwd=ROOT,
        env=env | {"GOBII_ENCRYPTION_KEY": f"{new},{old}"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert moved() == MAILBOXES // 2
    assert run(*python, "-c", READ, ring=f"{new},{old}").strip() == str(MAILBOXES)
    run(*command, ring=f"{new},{old}")
    assert run(*python, "-c", READ, ring=new).strip() == str(MAILBOXES)
