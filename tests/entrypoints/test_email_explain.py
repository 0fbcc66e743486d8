"""`email_explain reply` as a person and as a program meet it."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command

from gobii_email.management.commands.email_explain import Command

KEYS = {"verdict", "scope", "reaction", "category", "advice"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def explain(*arguments, stdout=None, **options):
    stdout = stdout or io.StringIO()
    call_command("email_explain", "reply", *arguments, stdout=stdout, **options)
    return stdout.getvalue()


def explain_rows(text):
    stdout = io.StringIO()
    try:
        call_command("email_explain", "reply", "-", stdin=io.StringIO(text), stdout=stdout)
        code = 0
    except CommandError as error:
        code = error.returncode
    return code, [json.loads(line) for line in stdout.getvalue().splitlines()]


def test_one_reply_is_explained_as_json():
    document = json.loads(explain("--stage", "AUTH", "535 5.7.8 Password not accepted", "--json"))
    assert set(document) >= KEYS
    assert (document["verdict"], document["scope"], document["reaction"]) == (
        "permanent",
        "account",
        "hold_account",
    )
    assert (document["code"], document["enhanced"], document["hold"]) == (535, "5.7.8", "auth_needed")


def test_a_person_at_a_terminal_reads_a_sentence():
    text = explain("--stage", "rcpt", "450 4.2.0 Greylisted", stdout=Terminal())
    assert text.startswith("A temporary refusal: we try again later.")
    assert "verdict   temporary" in text
    held = explain("--stage", "mail", "530 5.7.0 Must issue a STARTTLS command first", stdout=Terminal())
    assert "its mail waits" in held and "config_needed until a person acts" in held
    assert explain("--stage", "dot", "250 ok", stdout=Terminal()).startswith("Accepted. ")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("CONNECT", "connect"),
        ("banner", "connect"),
        ("EHLO", "ehlo"),
        ("STARTTLS", "tls"),
        ("tls", "tls"),
        ("Auth", "auth"),
        ("MAIL", "mail"),
        ("RCPT", "rcpt"),
        ("DATA", "data"),
        ("QUEUE", "dot"),
        ("dot", "dot"),
    ],
)
def test_stages_go_by_our_names_and_the_customary_ones(name, stage):
    assert json.loads(explain("--stage", name, "451 later"))["stage"] == stage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("550 no",), "--stage is missing"),
        (("--stage", "rcpt", "hello"), "REPLY: not an SMTP reply"),
        (("--stage", "moon", "550 no"), "--stage: 'moon' is not a stage; use one of connect"),
    ],
)
def test_wrong_usage_names_the_argument_and_the_remedy(arguments, words):
    with pytest.raises(CommandError, match=words):
        explain(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("reply", "550 no"),
        ("reply", "--stage", "moon", "550 no"),
        ("reply", "--stage", "rcpt", "hello"),
        ("reply",),
        (),
        ("poem",),
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        Command().run_from_argv(["manage.py", "email_explain", *arguments])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_each_row_of_ndjson_is_answered_by_a_row():
    code, rows = explain_rows(
        '{"stage": "CONNECT", "reply": "421 busy"}\n\n'
        '{"stage": "QUEUE", "reply": "550-5.1.1 a\\n550 5.1.1 b"}\n'
    )
    assert code == 0
    assert [row["verdict"] for row in rows] == ["temporary", "permanent"]
    assert all(set(row) >= KEYS for row in rows)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("nonsense", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"reply": "550 no"}', "'stage' is missing"),
        ('{"stage": "rcpt", "reply": 550}', "'reply' is missing or not a text"),
        ('{"stage": "moon", "reply": "550 no"}', "not a stage"),
        ('{"stage": "rcpt", "reply": "hello"}', "not an SMTP reply"),
        ('{"stage": "rcpt", "reply": ""}', "not an SMTP reply"),
    ],
)
def test_a_row_that_cannot_be_read_says_why_and_the_others_are_answered(row, words):
    code, rows = explain_rows(f'{row}\n{{"stage": "rcpt", "reply": "550 no"}}\n')
    assert code == 1
    assert words in rows[0]["error"] and re.search("write|use|expected", rows[0]["error"])
    assert rows[1]["verdict"] == "permanent"
