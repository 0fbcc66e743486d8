"""What Amazon SES tells in JSON, and what is none of it."""

import json

import pytest

from gobii_email.domain.dsn import Action
from gobii_email.domain.returned_mail import Kind, read_mail
from gobii_email.domain.ses_notifications import read_notification

MAIL = {"messageId": "x", "commonHeaders": {"messageId": "<7d1c-41@sender.example>"}}


def notification(name, listed, recipients, key="notificationType"):
    return {key: name, name.lower(): {listed: recipients}, "mail": MAIL}


BOUNCE = notification("Bounce", "bouncedRecipients", [{"emailAddress": "a@there.example", "status": "5.1.1"}])
COMPLAINT = notification(
    "Complaint", "complainedRecipients", [{"emailAddress": "a@there.example"}], "eventType"
)
DELIVERY = notification("Delivery", "recipients", ["a@there.example"])


@pytest.mark.parametrize(
    ("document", "kind", "action", "status"),
    [
        (BOUNCE, Kind.FAILED, Action.FAILED, "5.1.1"),
        (COMPLAINT, Kind.COMPLAINT, Action.COMPLAINED, ""),
        (DELIVERY, Kind.DELIVERED, Action.DELIVERED, "2.0.0"),
    ],
    ids=["bounce", "complaint", "delivery"],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_each_notification_is_read(document, kind, action, status, is_wrapped):
    text = json.dumps({"Type": "Notification", "Message": json.dumps(document)} if is_wrapped else document)
    returned = read_mail(f"Subject: AWS Notification Message\n\n{text}\n".encode())
    (recipient,) = returned.recipients
    assert (returned.kind, returned.original_message_id) == (kind, "<7d1c-41@sender.example>")
    assert (recipient.address, recipient.action, recipient.status) == ("a@there.example", action, status)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "[" * 100_000, '{"a":' * 100_000, '{"Message": 1}', '{"eventType": ["x"]}',
        '{"eventType": "Bounce", "bounce": []}',
        '{"notificationType": "mail", "mail": {"": [1]}}',
        '{"notificationType": "Bounce", "bounce": {"bouncedRecipients": [null, {"emailAddress": {}}, 7.5]}}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_what_is_no_notification_is_none(text):
    found = read_notification(text)
    assert found is None or all(len(one.address) < 20 for one in found.recipients)
