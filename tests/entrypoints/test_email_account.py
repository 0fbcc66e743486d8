"""`email_account` as an operator or a script uses it: exit codes, JSON, steps, and no secret anywhere."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from gobii_email.models import AgentEmailAccount
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import ScriptedSmtpServer

pytestmark = pytest.mark.django_db
PASSWORD = "pässwörd-S3cret"
ADDRESS = "anna@sender.example"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(tls=authority.good(), users={"anna": PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port}
        yield started


@pytest.fixture
def document(server: ScriptedSmtpServer, tmp_path: Path) -> Path:
    path = tmp_path / "account.json"
    smtp = {"host": "localhost", "port": server.port, "username": "anna", "password": PASSWORD}
    path.write_text(json.dumps({"agent": "Anna", "address": ADDRESS, "smtp": smtp}))
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and the sentence for standard error."""
    out = io.StringIO()
    try:
        call_command("email_account", *arguments, stdout=out)
    except CommandError as ended:
        return ended.returncode, out.getvalue(), str(ended)
    return 0, out.getvalue(), ""


def test_apply_test_enable_is_all_it_takes(server: ScriptedSmtpServer, document: Path) -> None:
    code, out, _ = run("apply", str(document))
    assert code == 0 and json.loads(out)["account_id"] == str(AgentEmailAccount.objects.get().pk)
    assert PASSWORD not in out

    code, out, _ = run("test", ADDRESS, "--smtp")
    assert code == 0 and "✓ auth" in out and "✓ The server accepts mail" in out

    code, out, _ = run("enable", ADDRESS, "--outbound", "--json")
    assert code == 0 and json.loads(out)["is_outbound_enabled"] is True
    assert run("disable", ADDRESS)[0] == 0
    assert not AgentEmailAccount.objects.get().is_outbound_enabled


def test_a_failed_test_shows_the_step_the_advice_and_exit_code_1(
    server: ScriptedSmtpServer, document: Path
) -> None:
    run("apply", str(document))
    server.users["anna"] = "another"
    code, out, said = run("test", ADDRESS)
    assert code == 1 and "✗ auth" in out and "Enter them again" in out and "535" in said
    code, out, _ = run("test", ADDRESS, "--json")
    answer = json.loads(out)
    assert code == 1 and answer["ok"] is False and answer["error"]["remedy"]
    assert [step["status"] for step in answer["steps"]].count("fail") == 1


def test_what_was_not_tested_is_refused_with_exit_code_1(document: Path) -> None:
    run("apply", str(document))
    code, out, said = run("enable", ADDRESS, "--json")
    assert code == 1 and "Run Test SMTP" in said
    assert json.loads(out)["error"]["field"] == "is_outbound_enabled"


def test_a_mailbox_without_imap_is_told_what_is_missing(document: Path) -> None:
    run("apply", str(document))
    code, out, said = run("test", ADDRESS, "--imap")
    assert code == 1 and "host and port" in said and "✗ settings" in out


@pytest.mark.parametrize("action", ["show", "pause", "resume", "delete", "test", "enable", "disable"])
def test_an_account_that_does_not_exist_is_a_sentence_and_not_a_traceback(action: str) -> None:
    code, out, said = run(action, "nobody@sender.example", "--json")
    assert code == 1 and "There is no account" in said
    assert json.loads(out)["error"]["field"] == "address"


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("{", 2, "not JSON"),
        ("[" * 100_000, 2, "not JSON"),
        ('"text"', 1, "not a JSON object"),
        ('{"address": "anna@sender.example"}', 1, "agent: it is missing"),
    ],
    ids=["torn", "deep", "no object", "no agent"],
)
def test_a_bad_document_names_what_is_wrong(content: str, code: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    result = run("apply", str(path), "--json")
    assert result[0] == code and said in result[2]
    problem = json.loads(result[1])["error"]
    assert problem["field"] and problem["reason"] and problem["remedy"]
    assert not AgentEmailAccount.objects.exists()


def test_a_missing_file_is_a_usage_error() -> None:
    assert run("apply", "no-such-file.json")[0] == 2


def test_pause_and_resume_and_delete(document: Path) -> None:
    run("apply", str(document))
    assert run("pause", ADDRESS, "--reason", "Quarter's end", "--for", "30m")[0] == 0
    account = AgentEmailAccount.objects.get()
    assert (account.state, account.state_reason) == ("paused", "Quarter's end") and account.state_until
    assert json.loads(run("resume", ADDRESS, "--json")[1])["state"] == "active"
    assert json.loads(run("list", "--json")[1])[0]["address"] == ADDRESS
    assert "smtp host" in run("show", ADDRESS)[1]
    assert run("delete", ADDRESS)[0] == 0 and not AgentEmailAccount.objects.exists()
    assert "No accounts yet" in run("list")[1]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(["--reason", " "], "reason"), (["--for", "0s"], "for")],
    ids=["no reason", "no time"],
)
def test_a_pause_has_a_reason_and_lasts_some_time(arguments: list[str], field: str, document: Path) -> None:
    run("apply", str(document))
    code, out, said = run("pause", ADDRESS, *arguments, "--json")
    problem = json.loads(out)["error"]
    assert code == 2 and problem["field"] == field and problem["remedy"] in said
    assert AgentEmailAccount.objects.get().state == "active"


def test_what_was_typed_elsewhere_cannot_paint_on_a_terminal(document: Path) -> None:
    run("apply", str(document))
    run("pause", ADDRESS, "--reason", "Look\x1b[2J\nhere")
    out = run("show", ADDRESS)[1]
    assert "Look [2J here" in out and "\x1b" not in out


def test_no_command_shows_the_password(document: Path) -> None:
    shown = "".join("".join(map(str, run(*command))) for command in (
        ("apply", str(document)), ("list",), ("list", "--json"), ("show", ADDRESS),
        ("show", ADDRESS, "--json"),
        ("test", ADDRESS), ("enable", ADDRESS, "--json"),
    ))  # fmt: skip
    assert ADDRESS in shown and "S3cret" not in shown


def test_the_process_ends_with_the_code_and_reads_standard_input(tmp_path: Path) -> None:
    environment = os.environ | {"GOBII_VAR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "gobii_email.settings"}
    environment |= {"DATABASE_URL": f"sqlite:///{tmp_path / 'one.sqlite3'}"}

    def manage(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "manage.py"), *arguments],
            input=given, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    unmigrated = manage("email_account", "list", "--json")
    assert unmigrated.returncode == 1 and "migrate" in json.loads(unmigrated.stdout)["error"]["remedy"]
    assert manage("migrate", "-v0").returncode == 0
    smtp = {"host": "smtp.sender.example", "password": PASSWORD}
    given = json.dumps({"agent": "Anna", "address": ADDRESS, "smtp": smtp})
    applied = manage("email_account", "apply", "-", given=given)
    assert applied.returncode == 0 and json.loads(applied.stdout)["address"] == ADDRESS
    failed = manage("email_account", "enable", ADDRESS)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert manage("email_account", "explode").returncode == 2


# The staged test


def test_a_test_shows_each_step_and_its_conversation_without_the_secret(
    server: ScriptedSmtpServer, document: Path
) -> None:
    run("apply", str(document))
    code, out, _ = run("test", ADDRESS, "--transcript")
    assert code == 0 and "✓ ehlo_again" in out and "-> EHLO" in out and "~> AUTH" in out
    assert "S3cret" not in out
    code, out, _ = run("test", ADDRESS, "--transcript", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["protocol"] == "smtp" and answer["tests"][0]["ok"]
    assert any(line.startswith("~> AUTH") for line in answer["transcript"]) and "S3cret" not in out
    first = answer["steps"][0]
    assert {"id", "status", "milliseconds", "facts", "advice", "raw", "name"} <= first.keys()


@pytest.mark.parametrize("stage", ["AUTH", "auth", "TLS", "connect"])
def test_a_test_stops_where_it_is_told_to(server: ScriptedSmtpServer, document: Path, stage: str) -> None:
    run("apply", str(document))
    code, out, _ = run("test", ADDRESS, "--until", stage)
    assert code == 0 and "· mail" in out and "Only a whole test vouches" in out
    assert not AgentEmailAccount.objects.get().is_smtp_tested
    assert bool(server.logins) is (stage.lower() == "auth")


def test_a_stage_that_does_not_exist_is_a_usage_error_that_names_those_there_are(document: Path) -> None:
    run("apply", str(document))
    code, out, said = run("test", ADDRESS, "--until", "LUNCH", "--json")
    assert code == 2 and "LUNCH" in said and "ehlo_again" in said
    assert json.loads(out)["error"]["field"] == "until"


def test_both_directions_are_tested_and_a_stage_of_one_may_not_be_one_of_the_other(
    server: ScriptedSmtpServer, document: Path, authority: ThrowAwayAuthority, settings: Any
) -> None:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}) as mailbox:
        settings.BYO_EMAIL_ALLOWED_PORTS = {server.port, mailbox.port}
        run("apply", str(document))
        imap = {"host": "localhost", "port": mailbox.port, "username": "anna", "password": PASSWORD}
        applied = document.with_name("imap.json")
        applied.write_text(json.dumps({"address": ADDRESS, "imap": imap}))
        assert run("apply", str(applied))[0] == 0
        code, out, _ = run("test", ADDRESS, "--smtp", "--imap")
        assert code == 0 and "✓ rcpt" in out and "✓ select" in out and "can be read" in out
        mailbox.users["anna"] = "another"
        code, out, said = run("test", ADDRESS, "--smtp", "--imap", "--json")
    answer = json.loads(out)
    assert code == 1 and "AUTHENTICATIONFAILED" in said
    assert [test["ok"] for test in answer["tests"]] == [True, False]
    assert (answer["ok"], answer["protocol"], answer["error"]["field"]) == (False, "imap", "imap")


@pytest.mark.parametrize(("security", "step"), [("starttls", "message"), ("ssl", "starttls")])
def test_a_step_that_the_connection_does_not_have_ends_nothing(
    authority: ThrowAwayAuthority, document: Path, settings: Any, security: str, step: str
) -> None:
    users = {"anna": PASSWORD}
    with ScriptedSmtpServer(tls=authority.good(), users=users, security=security) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = {server.port}
        facts = json.loads(document.read_text())
        facts["smtp"] |= {"port": server.port, "security": security}
        document.write_text(json.dumps(facts))
        run("apply", str(document))
        code, out, _ = run("test", ADDRESS, "--until", step)
    assert code == 0 and "The server accepts mail" in out
    assert AgentEmailAccount.objects.get().is_smtp_tested


def test_a_mail_to_oneself_belongs_to_a_test_of_sending(document: Path) -> None:
    run("apply", str(document))
    code, out, said = run("test", ADDRESS, "--imap", "--send-to-self", "--json")
    assert code == 2 and json.loads(out)["error"]["field"] == "send_to_self" and "--smtp" in said


def test_a_mail_to_oneself_is_sent_when_asked_for(server: ScriptedSmtpServer, document: Path) -> None:
    run("apply", str(document))
    code, out, _ = run("test", ADDRESS, "--send-to-self")
    assert code == 0 and "✓ message" in out and len(server.messages) == 1
