"""From a mailbox's settings to another mailbox, by way of a Postfix as providers run it.

Every step is a command that a person would give; what arrived, and what was said, is read from the
server's own mailboxes and log.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.smtp import Deadlines, SmtpTransport
from gobii_email.domain.outcomes import Accepted
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Auth, Envelope, Security, SmtpServer
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.postfix import MAX_MESSAGE_BYTES, Delivery, RealPostfix
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.stack import Stack, eventually

PASSWORD = "pässwörd €😀 with blanks"
ANNA = "anna@mail.example"
RCPT, COPY, HIDDEN = "bob@mail.example", "copy@mail.example", "hidden@mail.example"
NOBODY, GONE = "nobody@mail.example", "gone@mail.example"
USERS = [
    ANNA,
    *(f"{name}@mail.example" for name in ("starttls-plain", "starttls-login", "ssl-plain", "faulty")),
]
PNG = b"\x89PNG\r\n\x1a\n.\r\n..\r\n" + bytes(range(256))
TRICKY = "First line\n.\n..\n.dotted\nÄ€😀 beyond ASCII\n" + "long " * 600 + "\n.\nlast line"

FROZEN = """
import sys
from gobii_email.models import OutboundMessageAttempt
attempt = OutboundMessageAttempt.objects.select_related("message__frozen").get(message=sys.stdin.read())
print(attempt.pk, bytes(attempt.message.frozen.mime).hex())
"""

Answer = subprocess.CompletedProcess[str]


@dataclass
class Plant:
    """The service, and the Postfix beside it."""

    stack: Stack
    postfix: RealPostfix

    def apply(self, address: str, door: str, security: str, auth: str, **others: str) -> None:
        login = {"username": address, "password": PASSWORD} if auth != "none" else {}
        server = {"host": "localhost", "port": self.postfix.ports[door], "security": security, "auth": auth}
        document = {"agent": f"Agent {address}", "address": address, "smtp": {**server, **login, **others}}
        answer = self.stack.manage("email_account", "apply", "-", input=json.dumps(document))
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["account_id"]
        assert PASSWORD not in answer.stdout + answer.stderr

    def test(self, address: str) -> tuple[int, dict[str, Any]]:
        answer = self.stack.manage("email_account", "test", address, "--json")
        return answer.returncode, json.loads(answer.stdout)

    def enable(self, address: str) -> Answer:
        return self.stack.manage("email_account", "enable", address, "--outbound")

    def send(self, *arguments: str, sender: str = ANNA, wait: str = "120") -> tuple[int, dict[str, Any]]:
        """The exit code, and the status document at the end of the wait."""
        words = ["--from", sender, "--subject", "Grüße", "--wait", wait, "--json", *arguments]
        answer = self.stack.manage("email_send", *words)
        return answer.returncode, json.loads(answer.stdout)

    def arrived(self, address: str, message: dict[str, Any]) -> Delivery:
        """The copy of `message` in a mailbox, once it is there."""
        wanted = f"Message-ID: {message['rfc_message_id']}\n".encode()

        def found() -> list[Delivery]:
            return [one for one in self.postfix.mailbox(address) if wanted in one.content]

        delivery: Delivery
        (delivery,) = eventually(found)
        return delivery


@pytest.fixture(scope="module")
def plant(authority: ThrowAwayAuthority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    users = dict.fromkeys(USERS, PASSWORD)
    mailboxes, aliases = [RCPT, COPY, HIDDEN, "open@mail.example"], {GONE: "left@mail.example"}
    try:
        postfix = RealPostfix(authority, users, mailboxes, aliases)
    except ServerUnavailable as problem:
        pytest.skip(f"REAL POSTFIX IS NOT TESTED HERE: {problem}")
    with postfix, Stack(tmp_path_factory.mktemp("stack"), env=_environment(authority, postfix)) as stack:
        stack.start_worker()
        stack.start_dispatcher()
        stack.connect(ANNA, postfix.ports["starttls"], PASSWORD)
        yield Plant(stack, postfix)


def _environment(authority: ThrowAwayAuthority, postfix: RealPostfix) -> dict[str, str]:
    ports = ",".join(map(str, postfix.ports.values()))
    return {"SSL_CERT_FILE": str(authority.ca_file), "BYO_EMAIL_ALLOWED_PORTS": ports}


@pytest.mark.parametrize(
    ("name", "door", "security", "auth", "protocol"),
    [
        ("starttls-plain", "starttls", "starttls", "plain", "ESMTPSA"),
        ("starttls-login", "starttls", "starttls", "login", "ESMTPSA"),
        ("ssl-plain", "implicit", "ssl", "plain", "ESMTPSA"),
        ("open", "plain", "none", "none", "ESMTP"),
    ],
)
def test_a_mailbox_is_connected_tested_enabled_and_used(
    plant: Plant, name: str, door: str, security: str, auth: str, protocol: str
) -> None:
    address = f"{name}@mail.example"
    plant.apply(address, door, security, auth)
    code, tested = plant.test(address)
    assert (code, tested["ok"]) == (0, True), tested
    enabled = plant.enable(address)
    assert enabled.returncode == 0, enabled.stderr

    code, message = plant.send("--to", RCPT, "--body", "Hello", sender=address)

    assert (code, message["status"]) == (0, "sent"), message
    trace = plant.arrived(RCPT, message).trace
    (attempt,) = message["attempts"]
    # What Postfix says, a process of its own writes down.
    eventually(lambda: attempt["provider_message_id"] in plant.postfix.queue_ids())
    assert f"with {protocol} id {attempt['provider_message_id']}\n".encode() in trace
    if auth != "none":
        logged_in = f"sasl_method={auth.upper()}, sasl_username={address}"
        wanted = f"{attempt['provider_message_id']}: client=localhost[127.0.0.1], {logged_in}"
        eventually(lambda: wanted in plant.postfix.log)


def test_a_wrong_password_is_told_with_a_remedy_and_cannot_be_enabled(plant: Plant) -> None:
    address = "faulty@mail.example"
    plant.apply(address, "starttls", "starttls", "plain", password="not-this-one")

    code, tested = plant.test(address)
    enabled = plant.enable(address)

    assert (code, tested["ok"]) == (1, False)
    assert [step["name"] for step in tested["steps"] if step["status"] == "fail"] == ["auth"]
    assert "535 5.7.8" in tested["text"]
    assert "user name or password" in tested["error"]["remedy"]
    assert enabled.returncode == 1
    assert "it has to succeed" in enabled.stderr
    assert "not-this-one" not in plant.postfix.log + str(tested)


@pytest.mark.parametrize(
    ("door", "security", "auth", "said", "remedy"),
    [
        ("expired", "starttls", "plain", "expired on", "operator must renew it"),
        ("wrong_host", "starttls", "plain", "is for somebody-else.example", "one of the names"),
        ("self_signed", "starttls", "plain", "not trusted here", "SSL_CERT_FILE"),
        ("clear_login", "starttls", "plain", "does not offer STARTTLS", "or use SSL on port 465"),
        ("starttls", "ssl", "plain", "STARTTLS may be the right setting", "set security to STARTTLS"),
        ("starttls", "none", "none", "Must issue a STARTTLS command", "Set security to STARTTLS"),
    ],
)
def test_a_server_that_is_not_as_set_is_refused_before_any_login(
    plant: Plant, door: str, security: str, auth: str, said: str, remedy: str
) -> None:
    address = "faulty@mail.example"
    plant.apply(address, door, security, auth)
    before = len(plant.postfix.log_of(door))

    code, tested = plant.test(address)

    assert code == 1
    assert said in tested["text"]
    assert remedy in tested["advice"]
    log = _until_disconnected(plant, door, before)
    assert not re.search(r" auth=|sasl", log)
    assert (" quit=1 " in log) is (door == "clear_login" or security == "none")


def _until_disconnected(plant: Plant, door: str, start: int) -> str:
    """What the door's log says after `start`, once it has counted the commands of the connection."""
    eventually(lambda: "disconnect from" in plant.postfix.log_of(door)[start:])
    return plant.postfix.log_of(door)[start:]


def test_a_sender_that_the_login_does_not_own_fails_the_test_already(plant: Plant) -> None:
    address = "faulty@mail.example"
    plant.apply(address, "starttls", "starttls", "plain", username=ANNA)

    code, tested = plant.test(address)

    assert code == 1
    assert f"not owned by user {ANNA}" in tested["text"]
    assert "does not let this login send with this From address" in tested["advice"]


def test_an_address_that_takes_no_mail_may_still_send(plant: Plant) -> None:
    address = "no-reply@mail.example"
    plant.apply(address, "plain", "none", "none")

    code, tested = plant.test(address)

    assert (code, tested["ok"]) == (0, True), tested
    said = {step["name"]: (step["status"], step["text"][:9]) for step in tested["steps"]}
    assert said["rcpt"] == ("warn", "550 5.1.1")


def test_an_unknown_recipient_fails_the_message_with_the_servers_words(plant: Plant) -> None:
    code, message = plant.send("--to", NOBODY, "--body", "Hello")

    assert (code, message["status"]) == (1, "failed")
    (recipient,) = message["recipients"]
    assert (recipient["status"], recipient["smtp_code"], recipient["enhanced_status"]) == (
        "refused",
        550,
        "5.1.1",
    )
    (attempt,) = message["attempts"]
    assert (attempt["stage"], attempt["scope"], attempt["verdict"]) == ("rcpt", "recipient", "permanent")
    assert attempt["error_code"] == "unknown-user"


def test_one_unknown_recipient_of_two_leaves_the_message_partially_sent(plant: Plant) -> None:
    words = ["--from", ANNA, "--to", NOBODY, RCPT, "--subject", "Hi", "--body", "Hello", "--wait", "120"]
    sent = plant.stack.manage("email_send", *words)
    (message_id, *_) = sent.stdout.split()
    message = json.loads(plant.stack.manage("email_status", message_id, "--json").stdout)

    assert sent.returncode == 1
    assert sent.stdout == f"{message['message_id']} partially_sent Not to {NOBODY}.\n"
    statuses = {recipient["address"]: recipient["status"] for recipient in message["recipients"]}
    assert statuses == {NOBODY: "refused", RCPT: "accepted"}
    assert len(message["attempts"]) == 1
    plant.arrived(RCPT, message)


def test_a_message_over_the_servers_size_fails_before_a_byte_of_it_is_sent(
    plant: Plant, tmp_path: Path
) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(MAX_MESSAGE_BYTES))

    code, message = plant.send("--to", RCPT, "--body", "Hello", "--attach", str(big))

    assert (code, message["status"]) == (1, "failed")
    (attempt,) = message["attempts"]
    assert attempt["error_code"] == "message_too_large"
    assert f"up to {MAX_MESSAGE_BYTES} bytes" in attempt["error_message"]


def test_every_byte_arrives_as_it_was_frozen(plant: Plant, tmp_path: Path) -> None:
    image, data = tmp_path / "photo.png", tmp_path / "Überblick.csv"
    image.write_bytes(PNG)
    data.write_bytes(b".\r\n..\r\n" + os.urandom(50_000))
    body = f'<p><img src="cid:photo.png"></p><pre>{TRICKY}</pre>'
    recipients = ["--to", RCPT, "--cc", COPY, "--bcc", HIDDEN]

    code, message = plant.send(*recipients, "--body", body, "--attach", str(image), "--attach", str(data))

    assert (code, message["status"]) == (0, "sent"), message
    attempt_id, frozen = plant.stack.python(FROZEN, input=message["message_id"]).split()
    wire = f"X-Gobii-Message-ID: {attempt_id}\r\n".encode() + bytes.fromhex(frozen)
    assert attempt_id == message["attempts"][0]["attempt_id"]
    for address in (RCPT, COPY, HIDDEN):
        delivery = plant.arrived(address, message)
        assert delivery.content == wire.replace(b"\r\n", b"\n")
        assert HIDDEN.encode() not in delivery.content
        assert f"Return-Path: <{ANNA}>\n".encode() in delivery.trace
    _assert_says_what_was_written(delivery.content, data.read_bytes())


def _assert_says_what_was_written(content: bytes, data: bytes) -> None:
    mail = message_from_bytes(content, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    assert (mail["Subject"], mail["To"], mail["Cc"]) == ("Grüße", RCPT, COPY)
    files = {
        part.get_filename(): part.get_payload(decode=True) for part in mail.walk() if part.get_filename()
    }
    assert files == {"photo.png": PNG, "Überblick.csv": data}
    html = mail.get_body(("html",))
    assert html is not None
    assert TRICKY in html.get_content().replace("\r\n", "\n")


def test_the_server_takes_raw_8_bit_long_and_dotted_lines_unchanged(
    plant: Plant, authority: ThrowAwayAuthority
) -> None:
    port = plant.postfix.ports["starttls"]
    policy = DialPolicy((ip_network("127.0.0.0/8"),), frozenset({port}), lambda _host, _port: ["127.0.0.1"])
    server = SmtpServer("localhost", port, Security.STARTTLS, Auth.LOGIN, ANNA, Secret(PASSWORD))
    lines = [
        f"From: {ANNA}",
        f"To: {RCPT}",
        "Date: Sat, 01 Jan 2028 12:00:00 +0000",
        "Message-ID: <raw@mail.example>",
    ]
    body = [".", "..", ".x", "Ä€😀", "x" * 990, "." * 990, "", ".", "."]
    message = "\r\n".join([*lines, "", *body, ""]).encode()

    outcome = SmtpTransport(policy, replace(Deadlines(), dot=timedelta(seconds=120))).send(
        server, Envelope(ANNA, [RCPT], "raw+id=1"), message, _Unfollowed()
    )

    assert isinstance(outcome, Accepted), outcome
    assert {"DSN", "SIZE", "8BITMIME"} <= set(outcome.facts.extensions)
    assert plant.arrived(RCPT, {"rfc_message_id": "<raw@mail.example>"}).content == message.replace(
        b"\r\n", b"\n"
    )


class _Unfollowed:
    def reached(self, stage: Stage) -> None: ...

    def mark(self) -> None: ...


def test_a_later_bounce_names_our_attempt_and_the_recipient_as_we_wrote_it(plant: Plant) -> None:
    code, message = plant.send("--to", GONE, "--body", "Hello")
    assert (code, message["status"]) == (0, "sent"), message

    (bounce,) = eventually(
        lambda: [mail for mail in plant.postfix.mailbox(ANNA) if b"multipart/report" in mail.content]
    )

    attempt_id = message["attempts"][0]["attempt_id"]
    assert f"Original-Envelope-Id: {attempt_id}\n".encode() in bounce.content
    assert f"Original-Recipient: rfc822;{GONE}\n".encode() in bounce.content
    assert b"Content-Type: text/rfc822-headers\n" in bounce.content
    assert f"X-Gobii-Message-ID: {attempt_id}\n".encode() in bounce.content
    assert b"Hello" not in bounce.content
