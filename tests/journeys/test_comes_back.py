"""What comes back, through all processes at once, by commands alone: a bounce, an answer, a doubt that ends.

Real Postfix and Dovecot, a worker for each queue, a dispatcher and a watcher, as an operator runs them;
nobody here calls a service.
"""

import imaplib
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.postfix import RealPostfix
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.smtp_server import Faults, ScriptedSmtpServer
from gobii_email.testing.stack import Stack, eventually

ANNA, BERTA, PASSWORD = "anna@mail.example", "berta@sent.example", "a long password"
NOBODY, GRACE = "nobody@remote.example", "grace@remote.example"
FAULTS = Faults(always={NOBODY: "550 5.1.1 There is no such mailbox here"})


@dataclass
class World:
    """An installation, and the servers of two mailboxes."""

    stack: Stack
    postfix: RealPostfix
    dovecot: RealDovecot
    submission: ScriptedSmtpServer
    sent_mail: RealDovecot

    def command(self, *arguments: str, text: str | None = None) -> Any:
        done = self.stack.manage(*arguments, "--json", input=text)
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        return json.loads(done.stdout)

    def connect(self, address: str, smtp: Mapping[str, object], imap: Mapping[str, object]) -> None:
        login = {"username": address, "password": PASSWORD, "host": "localhost"}
        limits = {"per_minute": 600, "max_connections": 2}
        document = {"agent": address, "address": address, "smtp": {**login, **smtp}, "limits": limits}
        self.command("email_account", "apply", "-", text=json.dumps(document | {"imap": {**login, **imap}}))
        self.command("email_account", "test", address, "--smtp", "--imap")
        self.command("email_account", "enable", address, "--inbound", "--outbound")

    def send(self, sender: str, to: str) -> str:
        sent = self.command("email_send", "--from", sender, "--to", to, "--subject", "Hello", "--body", "Hi")
        return str(sent["message_id"])

    def status(self, message_id: str) -> Any:
        return self.command("email_status", message_id)

    def until(self, message_id: str, status: str) -> Any:
        def probe() -> Any:
            found = self.status(message_id)
            return found if found["status"] == status else None

        try:
            return eventually(probe, seconds=240, every=0.5)
        except TimeoutError:
            raise AssertionError(self.status(message_id)) from None


@pytest.fixture(scope="module")
def world(authority: ThrowAwayAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    certificate = authority.good_certificate()
    try:
        with (
            ScriptedSmtpServer(security="none", faults=FAULTS) as remote,
            RealPostfix(authority, {ANNA: PASSWORD}, routes={"remote.example": remote.port}) as postfix,
            RealDovecot(certificate, {ANNA: PASSWORD}, mail=postfix.directory / "mailboxes") as dovecot,
            RealDovecot(certificate, {BERTA: PASSWORD}, marked={"Sent": "\\Sent"}) as sent_mail,
            ScriptedSmtpServer(tls=authority.good(), users={BERTA: PASSWORD}) as submission,
        ):
            env = {
                "SSL_CERT_FILE": str(authority.ca_file),
                "BYO_EMAIL_ALLOWED_PORTS": ",".join(
                    str(port)
                    for port in (
                        *postfix.ports.values(),
                        *dovecot.ports.values(),
                        *sent_mail.ports.values(),
                        submission.port,
                    )
                ),
                "IMAP_IDLE_SCAN_INTERVAL_SEC": "500ms",
                "IMAP_IDLE_DEBOUNCE_SEC": "300ms",
            }
            with Stack(Path(tmp_path_factory.mktemp("comes-back")), env=env) as stack:
                made = World(stack, postfix, dovecot, submission, sent_mail)
                starttls = {"port": postfix.ports["starttls"], "security": "starttls"}
                made.connect(ANNA, starttls, {"port": dovecot.ports["implicit"], "security": "ssl"})
                submit = {"port": submission.port, "security": "starttls"}
                made.connect(BERTA, submit, {"port": sent_mail.ports["implicit"], "security": "ssl"})
                for queue in ("email.send", "email.inbound", "email.control"):
                    stack.start_worker(queues=queue)
                stack.start_dispatcher()
                stack.start_process("idlers", ["python", "manage.py", "run_imap_idlers"]).wait_for(
                    "idle.started"
                )
                yield made
    except ServerUnavailable as problem:
        pytest.skip(f"WHAT COMES BACK IS NOT TESTED WITH REAL SERVERS HERE: {problem}")


def test_a_bounce_that_postfix_writes_fails_the_attempt_and_refuses_the_next_mail(world: World) -> None:
    message_id = world.send(ANNA, NOBODY)
    found = world.until(message_id, "failed")
    (recipient,), (attempt,) = found["recipients"], found["attempts"]
    assert (recipient["address"], recipient["status"]) == (NOBODY, "bounced")
    assert (recipient["smtp_code"], recipient["enhanced_status"]) == (550, "5.1.1")
    assert (attempt["status"], attempt["error_code"]) == ("failed", "bounced")
    again = world.stack.manage(
        "email_send", "--from", ANNA, "--to", NOBODY, "--subject", "Again", "--body", "Hi", "--json"
    )
    assert again.returncode == 1 and NOBODY in again.stdout


def test_an_answer_arrives_once_in_its_thread(world: World) -> None:
    message_id = world.send(ANNA, GRACE)
    sent = world.until(message_id, "sent")
    answer = (
        f"From: Grace <{GRACE}>\r\nTo: {ANNA}\r\nSubject: Re: Hello\r\n"
        "Message-ID: <answer@remote.example>\r\n"
        f"In-Reply-To: {sent['rfc_message_id']}\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\n\r\nHi Anna\r\n"
    ).encode()
    world.dovecot.put(ANNA, answer)
    world.dovecot.put(ANNA, answer.replace(b"10:00:00", b"10:00:01"))
    code = (
        "import json, sys\n"
        "from gobii_email.models import PersistentAgentMessage as Message, ReceivedMail as Mail\n"
        "found = Message.objects.filter(is_outbound=False, rfc_message_id='<answer@remote.example>')\n"
        "mails = Mail.objects.filter(rfc_message_id='<answer@remote.example>').order_by('uid')\n"
        "print(json.dumps([[[str(one.parent_id), one.body.strip(), one.from_address] for one in found],\n"
        "                  list(mails.values_list('state', flat=True))]))"
    )

    def both() -> Any:
        messages, states = json.loads(world.stack.python(code))
        return (messages, states) if len(states) == 2 and "stored" not in states else None

    messages, states = eventually(both, seconds=240, every=0.5)
    assert messages == [[message_id, "Hi Anna", GRACE]]
    assert states == ["received", "skipped"]


def test_a_doubt_ends_by_what_lies_in_sent(world: World) -> None:
    world.submission.faults.drops.add("AFTER_DOT")
    message_id = world.send(BERTA, GRACE)
    world.until(message_id, "in_doubt")
    (taken,) = world.submission.messages
    context = ssl.create_default_context()
    with imaplib.IMAP4_SSL("localhost", world.sent_mail.ports["implicit"], ssl_context=context) as client:
        client.login(BERTA, PASSWORD)
        date = imaplib.Time2Internaldate(time.time())
        assert client.append("Sent", "(\\Seen)", date, taken.content)[0] == "OK"
    found = world.until(message_id, "sent")
    assert len(found["attempts"]) == 1 and len(world.submission.messages) == 1
    assert any('Found in "Sent"' in event["text"] for event in found["timeline"])
