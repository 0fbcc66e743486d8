"""Replies stay in their conversation, and no foreign id harms the header it goes into."""

import pytest

from gobii_email.domain.thread_headers import MAX_REFERENCES, clean_message_id, reply_headers


def test_a_reply_refers_to_the_parents_references_and_then_the_parent() -> None:
    assert reply_headers("<c@x>", "<a@x> <b@x>") == ("<c@x>", ("<a@x>", "<b@x>", "<c@x>"))
    assert reply_headers("<c@x>", ("<a@x>", "<b@x>")) == ("<c@x>", ("<a@x>", "<b@x>", "<c@x>"))


def test_a_follow_up_reply_extends_the_first_chain() -> None:
    _, first = reply_headers("<b@x>", "<a@x>")
    assert reply_headers("<c@x>", first) == ("<c@x>", ("<a@x>", "<b@x>", "<c@x>"))


def test_without_a_parent_id_there_are_no_headers() -> None:
    assert reply_headers("", "<a@x>") == ("", ())
    assert reply_headers("<>", "<a@x>") == ("", ())


def test_each_id_occurs_once_and_the_parent_last() -> None:
    assert reply_headers("<b@x>", "<a@x>\r\n <b@x>\t<a@x>") == ("<b@x>", ("<a@x>", "<b@x>"))


def test_of_a_long_thread_the_first_and_the_latest_ids_stay() -> None:
    _, references = reply_headers("<end@x>", " ".join(f"<{n}@x>" for n in range(100)))
    assert len(references) == MAX_REFERENCES
    assert references[0] == "<0@x>"
    assert references[-2:] == ("<99@x>", "<end@x>")


def test_an_id_without_brackets_gets_them() -> None:
    assert clean_message_id(" a@x ") == "<a@x>"


@pytest.mark.parametrize(
    "text",
    [
        "<a@x>\r\nBcc: b@x",
        "<a\0@x>",
        "<a b@x>",
        "<ä@x>",
        "<=?utf-8?q?=0ABcc:?=@x>",
        "<" + "a" * 300 + "@x>",
        "<<a@x>>",
    ],
    ids=["crlf", "nul", "blank", "not_ascii", "encoded_word", "too_long", "double_brackets"],
)
def test_a_harmful_id_is_dropped(text: str) -> None:
    assert clean_message_id(text) == ""
    assert reply_headers("<p@x>", f"<a@x> {text}")[1] in (("<a@x>", "<p@x>"), ("<p@x>",))
