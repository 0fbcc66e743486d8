"""Moving every secret under another key, while everybody goes on."""

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretsEncryption, SecretUnreadable, new_key
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    OAuthRequest,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
)
from gobii_email.services import reencrypt as module
from gobii_email.services.authorize import read_verifier, write_verifier
from gobii_email.services.reencrypt import reencrypt, take_stock
from tests.entrypoints.commands import run

pytestmark = pytest.mark.django_db

OLD, NEW = new_key("old"), new_key("new")


@pytest.fixture(autouse=True)
def old_ring(settings: Any) -> None:
    settings.GOBII_ENCRYPTION_KEY = OLD


def use(settings: Any, *ring: str) -> None:
    settings.GOBII_ENCRYPTION_KEY = ",".join(ring)


def mailbox(number: int = 0, **values: Any) -> AgentEmailAccount:
    agent = PersistentAgent.objects.create(name=f"Agent {number}")
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=f"agent{number}@sender.example"
    )
    account = AgentEmailAccount(
        endpoint=endpoint,
        smtp_host="smtp.sender.example",
        smtp_port=587,
        smtp_username="agent",
        imap_host="imap.sender.example",
        imap_port=993,
        imap_username="agent",
        **values,
    )
    account.set_smtp_password(f"smtp {number}")
    account.set_imap_password(f"imap {number}")
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.is_outbound_enabled = True
    account.save()
    return account


def signed_in(account: AgentEmailAccount) -> tuple[AgentEmailOAuthCredential, OAuthRequest]:
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    credential.set_access_token("access")
    credential.set_refresh_token("refresh")
    credential.save()
    request = OAuthRequest(
        account=account, state_sha256="s", provider="google", expires_at=timezone.now() + timedelta(minutes=9)
    )
    write_verifier(request, Secret("verifier"))
    request.save()
    return credential, request


def finish() -> Any:
    return list(reencrypt())[-1]


def test_every_kind_of_secret_is_read_without_the_old_key_afterwards(settings: Any) -> None:
    account = mailbox()
    credential, request = signed_in(account)
    use(settings, NEW, OLD)
    assert finish().done == 5
    use(settings, NEW)
    for row in (account, credential, request):
        row.refresh_from_db()
    read = (
        account.get_smtp_password,
        account.get_imap_password,
        credential.get_access_token,
        credential.get_refresh_token,
        lambda: read_verifier(request),
    )
    assert [one().reveal() for one in read] == ["smtp 0", "imap 0", "access", "refresh", "verifier"]


def test_no_encrypted_column_is_left_out() -> None:
    from django.apps import apps

    named = {
        (model, field.name)
        for model in apps.get_app_config("gobii_email").get_models()
        for field in model._meta.get_fields()
        if field.name.endswith("_encrypted")
    }
    assert {(column.model, column.name) for column in module.COLUMNS} == named


def test_what_was_tested_stays_tested_and_nothing_else_becomes_so(settings: Any) -> None:
    account = mailbox()
    use(settings, NEW, OLD)
    finish()
    account.refresh_from_db()
    assert account.is_smtp_tested and not account.is_imap_tested and not account.imap_tested_fingerprint


def test_a_password_that_is_changed_meanwhile_wins(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    account = mailbox()
    use(settings, NEW, OLD)
    anew = module._anew

    def changed_meanwhile(column: Any, row: Any, progress: Any) -> Any:
        found = anew(column, row, progress)
        monkeypatch.setattr(module, "_anew", anew)
        other = AgentEmailAccount.objects.get(pk=row.pk)
        other.set_smtp_password("a newer one")
        other.save()
        return found

    monkeypatch.setattr(module, "_anew", changed_meanwhile)
    progress = finish()
    account.refresh_from_db()
    assert account.get_smtp_password() == Secret("a newer one")
    assert progress.changed == 1 and not take_stock().keys["old"]


def test_what_cannot_be_read_is_named_and_left_as_it_is(settings: Any) -> None:
    lost, fine = mailbox(1), mailbox(2)
    AgentEmailAccount.objects.filter(pk=lost.pk).update(smtp_password_encrypted=b"\x01\x04gone" + b"x" * 40)
    use(settings, NEW, OLD)
    progress = finish()
    assert (progress.unreadable.count, progress.unreadable.whose) == (1, ["agent1@sender.example"])
    assert take_stock().by_key["SMTP passwords"] == {"gone": 1, "new": 1}
    lost.refresh_from_db()
    with pytest.raises(SecretUnreadable):
        lost.get_smtp_password()
    fine.refresh_from_db()
    assert fine.get_smtp_password() == Secret("smtp 2")


def test_what_is_done_is_not_done_again(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    for number in range(5):
        mailbox(number)
    use(settings, NEW, OLD)
    begun = reencrypt()
    assert next(begun).done == 2
    begun.close()
    assert finish().done == 8
    assert take_stock().keys == {"new": 10}
    assert finish().done == 0


# The command


def test_status_counts_by_key_and_says_what_to_do(settings: Any) -> None:
    mailbox()
    use(settings, NEW, OLD)
    found = run("email_keys", "status", "--json").document
    assert found["secrets"]["SMTP passwords"] == {"old": 1}
    assert (found["primary"], found["to_reencrypt"], found["unreadable"]) == ("new", 2, 0)
    assert "email_keys reencrypt" in run("email_keys", "status").out
    assert run("email_keys", "reencrypt", "--json").document["reencrypted"] == 2
    assert "old may leave the ring" in run("email_keys", "status").out


def test_a_secret_that_cannot_be_read_ends_the_commands_with_1(settings: Any) -> None:
    mailbox()
    use(settings, NEW)
    for act in ("status", "reencrypt"):
        answer = run("email_keys", act)
        assert answer.code == 1 and "agent0@sender.example" in answer.out
        assert "smtp 0" not in answer.out + answer.error


def test_a_new_ring_goes_to_a_file_of_its_owner_and_is_not_printed(settings: Any, tmp_path: Path) -> None:
    to = tmp_path / "ring"
    answer = run("email_keys", "rotate", "--to", to, "--json")
    ring = to.read_text().strip()
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert ring.startswith(f"{OLD},") and SecretsEncryption(ring).key_ids == ("old", answer.document["key"])
    assert not any(entry.partition(":")[2] in answer.out + answer.error for entry in ring.split(","))
    assert run("email_keys", "rotate", "--to", to).code == 1
    assert to.read_text().strip() == ring


def test_a_key_is_put_first_when_all_can_read_it(settings: Any, tmp_path: Path) -> None:
    use(settings, OLD, NEW)
    to = tmp_path / "ring"
    assert run("email_keys", "rotate", "--promote", "new", "--to", to).code == 0
    assert to.read_text().strip() == f"{NEW},{OLD}"
    missing = run("email_keys", "rotate", "--promote", "other", "--to", tmp_path / "none")
    assert missing.code == 1 and "old, new" in missing.error


def test_a_key_is_printed_for_whoever_asks_for_it() -> None:
    answer = run("email_keys", "rotate", "--print-key", "--json")
    assert SecretsEncryption(answer.document["ring"]).key_ids == ("old", answer.document["key"])
    assert run("email_keys", "rotate").code != 0
