"""What every command has in common: wrong usage is a sentence and, with `--json`, a document as well."""

import json

import pytest
from django.core.management import execute_from_command_line

from tests.entrypoints.commands import run

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "arguments",
    [("email_status",), ("email_cancel",), ("email_resolve", "--as", "sent"), ("email_account", "show")],
)
def test_an_argument_that_is_not_utf_8_is_wrong_usage(arguments):
    answer = run(*arguments, "ad\udce9", "--json")
    assert answer.code == 2 and answer.document["error"]["reason"].endswith("is not UTF-8.")


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        (("email_resolve", "x", "--as", "maybe"), "--as", "invalid choice: 'maybe'"),
        (
            ("email_account", "pause", "a@b.example", "--for", "99999999999d"),
            "--for",
            "longer than a hundred years",
        ),
        (("email_send", "--wait", "soon"), "--wait", "'soon' is not a length of time"),
        (("email_account", "show"), "ADDRESS", "ADDRESS"),
        (("email_resolve",), "MESSAGE_ID", "MESSAGE_ID"),
        (("email_suspend", "--reason", "R"), "--account", "one of the arguments"),
        (("email_doctor", "--now"), "--now", "unrecognized"),
    ],
)
def test_what_the_parser_refuses_is_a_document_with_json(arguments, field, said, capsys):
    with pytest.raises(SystemExit) as end:
        execute_from_command_line(["manage.py", *arguments, "--json"])
    out, error = capsys.readouterr()
    assert end.value.code == 2 and "usage:" in error and said in error
    problem = json.loads(out)["error"]
    assert problem["field"] == field and said in problem["reason"] and problem["remedy"]


def test_help_is_shown_once_with_json(capsys):
    with pytest.raises(SystemExit) as end:
        execute_from_command_line(["manage.py", "email_status", "--help", "--json"])
    assert end.value.code == 0 and capsys.readouterr().out.count("usage:") == 1


def test_a_limit_no_database_counts_to_shows_what_there_is():
    assert run("email_queue", "--limit", 10**30, "--json").code == 0
