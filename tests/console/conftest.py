"""Two owners with an agent, a mailbox and mail each, and somebody of the staff."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.test import Client

from gobii_email.api import send_agent_email
from gobii_email.models import (
    AgentEmailAccount,
    ConnectionTest,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from tests.conftest import connect


@dataclass(frozen=True)
class Owner:
    """Somebody with an agent that has a mailbox."""

    user: User
    client: Client
    agent: PersistentAgent
    account: AgentEmailAccount

    def message(self, subject: str = "A greeting", **values: Any) -> PersistentAgentMessage:
        mail = {"to": "friend@outside.example", "body": "<p>Good <b>day</b></p>", **values}
        return send_agent_email(from_endpoint=self.account.endpoint, subject=subject, **mail)


def owner_named(name: str) -> Owner:
    user = User.objects.create_user(name, f"{name}@people.example", "secret-of-" + name)
    agent = PersistentAgent.objects.create(name=f"Agent of {name}", user=user)
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=f"{name}@sender.example"
    )
    client = Client()
    client.force_login(user)
    return Owner(user, client, agent, connect(endpoint, 2525))


@pytest.fixture
def ada(db: None, doorbell: object) -> Owner:
    ContentType.objects.get_for_models(
        AgentEmailAccount, PersistentAgentCommsEndpoint, PersistentAgentMessage
    )
    return owner_named("ada")


@pytest.fixture
def bob(db: None, doorbell: object) -> Owner:
    return owner_named("bob")


@pytest.fixture
def staff(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


@pytest.fixture
def doubtful(ada: Owner) -> PersistentAgentMessage:
    """A message of Ada's of which nobody knows whether it was sent."""
    message = ada.message("Did it arrive?")
    OutboundMessageAttempt.objects.filter(message=message).update(
        status="in_doubt", provider="smtp", error_message="The server fell silent after the dot."
    )
    PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status="in_doubt")
    return message


@pytest.fixture
def tested(ada: Owner) -> ConnectionTest:
    """A failed test of Ada's mailbox, with everything a step can tell."""
    from django.utils import timezone

    step = {
        "id": "auth",
        "status": "fail",
        "milliseconds": 12,
        "text": "The server refused the sign-in.",
        "facts": {"mechanism": "PLAIN", "offered": ["PLAIN", "LOGIN"], "is_encrypted": True},
        "advice": "Create an app password.",
        "raw": "535 5.7.8 <b>no</b>",
    }
    return ConnectionTest.objects.create(
        account=ada.account, protocol="smtp", started_at=timezone.now(), finished_at=timezone.now(),
        text="The server refused the sign-in.", advice="Create an app password.",
        steps=[{**step, "id": "tcp", "status": "ok", "advice": "", "raw": ""}, step], asked_by="ada",
    )  # fmt: skip


def paths(owner: Owner, message: PersistentAgentMessage) -> dict[str, str]:
    """Every page there is, by name."""
    from django.urls import reverse

    one, box = (message.pk,), (owner.account.pk,)
    return {
        "overview": reverse("console:overview"),
        "messages": reverse("console:messages"),
        "message": reverse("console:message", args=one),
        "recipients": reverse("console:message", args=one) + "?show=recipients",
        "text": reverse("console:message", args=one) + "?show=text",
        "html": reverse("console:message", args=one) + "?show=html",
        "headers": reverse("console:message", args=one) + "?show=headers",
        "raw": reverse("console:message", args=one) + "?show=raw",
        "accounts": reverse("console:accounts"),
        "account": reverse("console:account", args=box),
        "delete": reverse("console:account_delete", args=box),
        "simulation": reverse("console:simulation"),
    }


Pages = Callable[[], dict[str, str]]
