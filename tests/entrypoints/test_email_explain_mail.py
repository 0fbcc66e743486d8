"""`email_explain mail` as a person and as a program meet it."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from tests.domain.bounce_samples import ATTEMPT_ID, MESSAGE_ID, NOBODY, SAMPLES

RAW = next(sample.raw for sample in SAMPLES if sample.name == "postfix")


def explain(*files, stdin=b""):
    stdout = io.StringIO()
    try:
        call_command("email_explain", "mail", *files, stdin=io.BytesIO(stdin), stdout=stdout)
        code = 0
    except CommandError as error:
        code = error.returncode
    return code, [json.loads(line) for line in stdout.getvalue().splitlines()]


def test_each_file_is_answered_by_one_line(tmp_path):
    (tmp_path / "bounce").write_bytes(RAW)
    (tmp_path / "letter").write_bytes(b"Subject: Hello\n\nHow are you?")
    code, (bounce, letter) = explain(str(tmp_path / "bounce"), str(tmp_path / "letter"))
    assert code == 0
    assert (bounce["file"], bounce["kind"]) == (str(tmp_path / "bounce"), "dsn-failed")
    (recipient,) = bounce["recipients"]
    assert (recipient["address"], recipient["action"], recipient["status"]) == (NOBODY, "failed", "5.1.1")
    assert (bounce["original_message_id"], bounce["attempt_id"]) == (MESSAGE_ID, ATTEMPT_ID)
    assert (letter["kind"], letter["recipients"], letter["original_message_id"]) == ("ordinary", [], None)


def test_standard_input_is_a_file_as_well():
    code, (answer,) = explain("-", stdin=RAW)
    assert (code, answer["file"], answer["attempt_id"]) == (0, "-", ATTEMPT_ID)


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    (tmp_path / "bounce").write_bytes(RAW)
    code, (missing, bounce) = explain(str(tmp_path / "missing"), str(tmp_path / "bounce"))
    assert code == 1
    assert missing["error"].startswith("cannot be read: No such file or directory; name a file")
    assert bounce["kind"] == "dsn-failed"


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\xff" * 1000, b"Subject: =?utf-8?b?7aCA?=\n\nx"], ids=["empty", "noise", "half"]
)
def test_any_bytes_are_answered(raw):
    assert explain("-", stdin=raw)[0] == 0


def test_without_a_file_it_is_a_mistake_of_usage():
    with pytest.raises(CommandError, match="FILE"):
        call_command("email_explain", "mail")
