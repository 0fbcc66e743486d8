"""What tests of the admin share: a server, a mailbox at it, and somebody of the staff."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from gobii_email.models import AgentEmailAccount
from gobii_email.services.accounts import apply_account
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer

PASSWORD = "pässwörd-S3cret"
ADDRESS = "anna@sender.example"


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(tls=authority.good(), users={"anna": PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port, 2525}
        yield started


@pytest.fixture
def account(server: ScriptedSmtpServer) -> AgentEmailAccount:
    smtp = {"host": "localhost", "port": server.port, "username": "anna", "password": PASSWORD}
    return apply_account({"agent": "Anna", "address": ADDRESS, "smtp": smtp})


@pytest.fixture
def staff(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


def page(name: str, *args: object) -> str:
    return reverse(f"admin:gobii_email_{name}", args=args)
