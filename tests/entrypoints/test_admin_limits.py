"""Limits above the accounts, as an operator gives them in the admin."""

import pytest
from django.urls import reverse

from gobii_email.models import SendingLimit

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("kind", "name", "is_taken"),
    [
        ("host", "SMTP.example.com:587", True),
        ("host", "smtp.example.com", False),
        ("domain", "example.com", True),
        ("domain", "ada@example.com", False),
    ],
)
def test_a_server_is_named_with_its_port_and_a_domain_alone(admin_client, kind, name, is_taken):
    answer = admin_client.post(
        reverse("admin:gobii_email_sendinglimit_add"), {"kind": kind, "name": name, "per_minute": "30"}
    )
    assert list(SendingLimit.objects.values_list("name", flat=True)) == ([name.lower()] if is_taken else [])
    assert is_taken or "such as" in answer.content.decode()


@pytest.mark.parametrize("limit", ["0", "-1", "1000000001"])
def test_a_limit_that_could_never_hold_is_refused(admin_client, limit):
    admin_client.post(
        reverse("admin:gobii_email_sendinglimit_add"),
        {"kind": "domain", "name": "example.com", "per_minute": limit},
    )
    assert not SendingLimit.objects.exists()
