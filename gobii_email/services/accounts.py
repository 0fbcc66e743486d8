"""Connecting an agent's own mailbox, changing it, switching its directions on and off, removing it.

One rule for every way in: where a password goes (host, port, security, user name) changes only together
with the password, and whatever a test vouched for takes the test's result with it. What a server says to
the settings is found out in diagnose.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from uuid import UUID

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import transaction
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.account_document import (
    FIELDS,
    AccountDocument,
    InvalidAccount,
    OAuthTokens,
    Problem,
    Unfit,
    host_name,
    read_document,
)
from gobii_email.domain.oauth_tokens import OAuthService
from gobii_email.domain.providers import provider_of_host
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    CommsChannel,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentEmailEndpoint,
)
from gobii_email.services import hold, learn, poll_schedule
from gobii_email.services.renew import revoke

__all__ = [
    "InvalidAccount",
    "Problem",
    "apply_account",
    "delete",
    "disable",
    "edit_account",
    "enable",
    "find_account",
    "save_account",
    "takes_tokens",
]

SIDES = {"smtp": "is_outbound_enabled", "imap": "is_inbound_enabled"}
_BY_PASSWORD = {AgentEmailAccount.AuthMode.PLAIN, AgentEmailAccount.AuthMode.LOGIN}
_USUAL_PORTS = {
    "smtp": {"ssl": 465, "starttls": 587},
    "imap": {"ssl": 993, "starttls": 143},
}
_LIMITS = {"per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection", "pool_ttl"}


def find_account(address: str) -> AgentEmailAccount | None:
    """The account of an agent's own `address`, with its endpoint and agent."""
    accounts = AgentEmailAccount.objects.select_related("endpoint__owner_agent")
    return accounts.filter(endpoint__address__iexact=address.strip()).first()


# The JSON document


def apply_account(document: object) -> AgentEmailAccount:
    """Creates or updates the account that `document` describes; what it does not name stays as it is.

    All or nothing. Raises InvalidAccount with every problem at once, under the document's own keys.
    """
    wanted = read_document(document)
    problems = list(wanted.problems)
    with transaction.atomic():
        endpoint = _endpoint(wanted, problems)
        account = _account_of(endpoint)
        is_new = account._state.adding
        try:
            changed = edit_account(
                account,
                _with_defaults(wanted, account) if is_new else wanted.changes,
                smtp_password=wanted.smtp_password,
                imap_password=wanted.imap_password,
                has_new_token=wanted.oauth is not None and wanted.oauth.access_token is not None,
            )
        except InvalidAccount as wrong:
            problems += [Problem(_key(field), *rest) for field, *rest in wrong.problems]
        problems += _missing_hosts(wanted, account)
        if problems:
            raise InvalidAccount(_first_of_each_field(problems))
        save_account(account, changed)
        _name(endpoint, wanted.display_name)
        if wanted.oauth is not None:
            _keep_tokens(account, wanted.oauth)
            poll_schedule.poll_now(account)
    return account


def _endpoint(wanted: AccountDocument, problems: list[Problem]) -> PersistentAgentCommsEndpoint:
    """The endpoint of the document's address, made if need be; not stored where it cannot be right."""
    owned = PersistentAgentCommsEndpoint.objects.select_related("owner_agent").filter(
        channel=CommsChannel.EMAIL, owner_agent__isnull=False
    )
    endpoint = owned.filter(address__iexact=wanted.address).first() if wanted.address else None
    if endpoint is None:
        agent = _agent(wanted, problems)
        endpoint = PersistentAgentCommsEndpoint(
            owner_agent=agent, channel=CommsChannel.EMAIL, address=wanted.address
        )
        if agent is not None and wanted.address:
            endpoint.save()
    elif wanted.agent is not None and wanted.agent not in _names_of(endpoint.owner_agent):
        problems.append(
            Problem("agent", "the address belongs to another agent.", "Name that agent, or leave agent out.")
        )
    return endpoint


def _names_of(agent: PersistentAgent | None) -> set[str]:
    return {agent.name, str(agent.pk)} if agent else set()


def _agent(wanted: AccountDocument, problems: list[Problem]) -> PersistentAgent | None:
    if wanted.agent is None:
        if not any(problem.field == "agent" for problem in problems):
            problems.append(
                Problem("agent", "it is missing.", "Give the name or id of the agent that writes.")
            )
        return None
    try:
        found = list(PersistentAgent.objects.filter(pk=UUID(wanted.agent)))
        if not found:
            problems.append(
                Problem("agent", "there is no agent with that id.", "Give a name to make a new one.")
            )
            return None
    except ValueError:
        found = list(PersistentAgent.objects.filter(name=wanted.agent)[:2])
    if len(found) > 1:
        problems.append(Problem("agent", "several agents have that name.", "Give the agent's id."))
        return None
    return found[0] if found else PersistentAgent.objects.create(name=wanted.agent)


def _account_of(endpoint: PersistentAgentCommsEndpoint) -> AgentEmailAccount:
    stored = AgentEmailAccount.objects.select_for_update().filter(endpoint=endpoint.pk).first()
    return stored or AgentEmailAccount(endpoint=endpoint, imap_idle_enabled=True)


def _with_defaults(wanted: AccountDocument, account: AgentEmailAccount) -> Mapping[str, object]:
    """A new account's changes, with port and security following from each other where one is not named."""
    changes = dict(wanted.changes)
    for side, ports in _USUAL_PORTS.items():
        if side not in wanted.sections:
            continue
        security, port = f"{side}_security", f"{side}_port"
        implied = next((name for name, usual in ports.items() if usual == changes.get(port)), None)
        changes.setdefault(security, implied or getattr(account, security))
        if (usual := ports.get(str(changes[security]))) is not None:
            changes.setdefault(port, usual)
    return changes


def _missing_hosts(wanted: AccountDocument, account: AgentEmailAccount) -> list[Problem]:
    return [
        Problem(f"{side}.{part}", "it is missing.", "Give it as the provider's instructions name it.")
        for side in SIDES
        for part in ("host", "port")
        if side in wanted.sections and not getattr(account, f"{side}_{part}")
    ]


def _first_of_each_field(problems: Iterable[Problem]) -> Sequence[Problem]:
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.field, problem)
    return list(first.values())


def _key(field: str) -> str:
    """The document's key for one of the account's fields: `smtp_host` is `smtp.host`."""
    for key, name in FIELDS.items():
        if field == name:
            return key
    side, _, rest = field.partition("_")
    if side in SIDES:
        return f"{side}.{rest}"
    return f"limits.{field}" if field in _LIMITS else field


def _name(endpoint: PersistentAgentCommsEndpoint, display_name: str | None) -> None:
    if display_name is not None:
        PersistentAgentEmailEndpoint.objects.update_or_create(
            endpoint=endpoint, defaults={"display_name": display_name}
        )


def _keep_tokens(account: AgentEmailAccount, tokens: OAuthTokens) -> None:
    credential = AgentEmailOAuthCredential.objects.filter(account=account).first()
    credential = credential or AgentEmailOAuthCredential(account=account)
    credential.provider = tokens.provider or credential.provider
    if tokens.access_token is not None:
        credential.set_access_token(tokens.access_token)
        credential.expires_at = tokens.expires_at
        # Nobody signed in for these, so nothing is known of what they allow.
        credential.scope, credential.metadata = "", {}
        credential.refresh_lease = credential.refresh_blocked_until = None
    if tokens.refresh_token is not None:
        credential.set_refresh_token(tokens.refresh_token)
    credential.save()


# One edit, whoever makes it


def edit_account(
    account: AgentEmailAccount,
    changes: Mapping[str, object],
    *,
    smtp_password: Secret | None = None,
    imap_password: Secret | None = None,
    has_new_token: bool = False,
) -> frozenset[str]:
    """Applies `changes`, by the account's field names, in memory; answers the fields that are different now.

    A password that equals the stored one is no change. Changed server settings clear the test result and
    switch their direction off, unless `changes` switches it on: then the rules of the account object.
    Raises InvalidAccount, under field names (`smtp_host`, `smtp_password`, …); the account is then not to
    be saved. `save_account` writes what this answers.
    """
    before = {field.attname: getattr(account, field.attname) for field in account._meta.concrete_fields}
    problems: list[Problem] = []
    for field, value in changes.items():
        setattr(account, field, _host(field, value, problems) if field.endswith("_host") and value else value)
    for side, password in (("smtp", smtp_password), ("imap", imap_password)):
        problems += _review_side(account, side, before, password, has_new_token=has_new_token)
        if _fingerprint(account, side) != _fingerprint(_former(account, before), side):
            setattr(account, f"{side}_tested_fingerprint", "")
            if not changes.get(SIDES[side]):
                setattr(account, SIDES[side], False)
    modes = {account.smtp_auth, account.imap_auth}
    account.connection_mode = (
        account.ConnectionMode.OAUTH2 if account.AuthMode.OAUTH2 in modes else account.ConnectionMode.CUSTOM
    )
    problems += _model_problems(account) + ([] if has_new_token else _sign_in_problems(account))
    if problems:
        raise InvalidAccount(_first_of_each_field(problems))
    return frozenset(field for field, value in before.items() if value != getattr(account, field))


def save_account(account: AgentEmailAccount, changed: Iterable[str]) -> None:
    """Writes a new account, or the `changed` fields alone: health and holds may have moved meanwhile.

    Mail that waited wakes up when sending was switched on, polls follow the settings for receiving, and what
    was learned of other servers is forgotten.
    """
    changed = set(changed)
    if account._state.adding:
        account.save(force_insert=True)
    elif changed:
        account.save(update_fields={*changed, "updated_at"})
    if account.is_outbound_enabled and SIDES["smtp"] in changed:
        hold.wake(account.endpoint_id)
    poll_schedule.reschedule(account, changed)
    learn.forget_habit(account, changed, timezone.now())


def _former(account: AgentEmailAccount, values: Mapping[str, object]) -> AgentEmailAccount:
    return AgentEmailAccount(**values)


def _fingerprint(account: AgentEmailAccount, side: str) -> str:
    return account.smtp_fingerprint() if side == "smtp" else account.imap_fingerprint()


def _host(field: str, value: object, problems: list[Problem]) -> object:
    try:
        return host_name(value)
    except Unfit as wrong:
        problems.append(Problem(field, wrong.reason, wrong.remedy))
        return value


def _review_side(
    account: AgentEmailAccount,
    side: str,
    before: Mapping[str, object],
    password: Secret | None,
    *,
    has_new_token: bool,
) -> list[Problem]:
    """Keeps, replaces or drops the password of one side, and says what must not be."""
    auth = getattr(account, f"{side}_auth")
    if (
        auth != account.AuthMode.NONE
        and getattr(account, f"{side}_host")
        and not getattr(account, f"{side}_username")
    ):
        setattr(account, f"{side}_username", account.endpoint.address)
    fields = [f"{side}_{part}" for part in ("host", "port", "security", "username")]
    has_moved = any(before[field] != getattr(account, field) for field in fields)
    problems = _forbidden(account, side, before)
    if auth not in _BY_PASSWORD:
        setattr(account, f"{side}_password_encrypted", None)
        if auth == account.AuthMode.OAUTH2 and has_moved and not has_new_token and _has_token(account):
            problems.append(_needs_secret_again(f"{side}_auth", "sign-in", "Connect the account again."))
        return problems
    return problems + _review_password(account, side, before, password, has_moved=has_moved)


def _review_password(
    account: AgentEmailAccount,
    side: str,
    before: Mapping[str, object],
    password: Secret | None,
    *,
    has_moved: bool,
) -> list[Problem]:
    field, stored = f"{side}_password", before[f"{side}_password_encrypted"]
    host = getattr(account, f"{side}_host")
    if password is None:
        if not host:
            return []
        if stored is None:
            return [Problem(field, "it is missing.", "Give the password, or set the authentication to none.")]
        if has_moved:
            return [
                _needs_secret_again(field, "password", "Enter the password again together with this change.")
            ]
        return []
    is_elsewhere = before[f"{side}_host"] != host
    if is_elsewhere or not _is_stored(_former(account, before), side, password):
        set_password = account.set_smtp_password if side == "smtp" else account.set_imap_password
        set_password(password)
    return []


def _needs_secret_again(field: str, what: str, remedy: str) -> Problem:
    return Problem(
        field,
        f"the stored {what} was given for the former host, port, security and user name.",
        remedy,
    )


def _is_stored(account: AgentEmailAccount, side: str, password: Secret) -> bool:
    try:
        return password == (account.get_smtp_password() if side == "smtp" else account.get_imap_password())
    except SecretUnreadable:
        return False


def _has_token(account: AgentEmailAccount) -> bool:
    return AgentEmailOAuthCredential.objects.filter(account=account.pk).exists()


def _forbidden(account: AgentEmailAccount, side: str, before: Mapping[str, object]) -> list[Problem]:
    """What this installation never does, said before the first test; only where something changed."""
    names = {part: f"{side}_{part}" for part in ("host", "port", "security", "auth")}
    host, port, security, auth = (getattr(account, name) for name in names.values())
    has_changed = any(before[name] != getattr(account, name) for name in names.values())
    if not has_changed or not host:
        return []
    problems = []
    allowed = config().allowed_ports
    if isinstance(port, int) and 1 <= port <= 65535 and port not in allowed:
        listed = ", ".join(map(str, sorted(allowed)))
        problems.append(
            Problem(names["port"], "that port is not open for mail here.", f"Use one of {listed}.")
        )
    if security == account.SmtpSecurity.NONE and auth != account.AuthMode.NONE and not _may_be_private(host):
        problems.append(
            Problem(
                names["security"],
                "the password would travel unencrypted.",
                "Use starttls or ssl; none is for hosts in BYO_EMAIL_ALLOWED_NETWORKS.",
            )
        )
    return problems


def _may_be_private(host: str) -> bool:
    """Whether `host` may lie in a network opened here; for names only the dial can tell."""
    try:
        ip_address(host)
    except ValueError:
        return bool(config().allowed_networks)
    return _is_opened(host)


def _model_problems(account: AgentEmailAccount) -> list[Problem]:
    try:
        account.full_clean()
    except ValidationError as wrong:
        return [
            Problem("account" if field == NON_FIELD_ERRORS else field, " ".join(messages))
            for field, messages in wrong.message_dict.items()
            if field != "endpoint" or not account.endpoint._state.adding
        ]
    return []


def _sign_in_problems(account: AgentEmailAccount) -> list[Problem]:
    """What the sign-in of the account's owner does not cover; of tokens from a document nothing is known."""
    sides = [side for side in SIDES if getattr(account, f"{side}_auth") == account.AuthMode.OAUTH2]
    credential = AgentEmailOAuthCredential.objects.filter(account=account.pk).first() if sides else None
    service = credential.service if credential and credential.is_signed_in else None
    if credential is None or service is None:
        return []
    is_allowed = {"smtp": credential.may_send, "imap": credential.may_receive}
    problems = []
    for side in sides:
        if not takes_tokens(getattr(account, f"{side}_host"), service):
            reason = f"it is no server of {service.name}, and only those are shown its tokens."
            problems.append(Problem(f"{side}_host", reason, "Use a password there, or disconnect first."))
        if getattr(account, SIDES[side]) and not is_allowed[side]:
            what = "sending" if side == "smtp" else "receiving"
            reason = f"{what} was not allowed when the mailbox was connected with {service.name}."
            problems.append(Problem(SIDES[side], reason, f"Connect it again and allow {what}."))
    return problems


def takes_tokens(host: str, service: OAuthService) -> bool:
    """Whether `host` may be shown tokens that somebody signed in to `service` for; also where none is named.

    A token opens the whole mailbox, so it goes to the service's own servers and to addresses in networks
    that the operator has opened, and to no other host that somebody typed in.
    """
    known = provider_of_host(host)
    is_its_own = known is not None and known.id in service.mail_providers
    return not host or is_its_own or _is_opened("127.0.0.1" if host == "localhost" else host)


def _is_opened(address: str) -> bool:
    try:
        return any(ip_address(address) in network for network in config().allowed_networks)
    except ValueError:
        return False


# Directions


def enable(account: AgentEmailAccount, *, outbound: bool = False, inbound: bool = False) -> AgentEmailAccount:
    """Switches directions on and wakes the mail that waited for it. Raises InvalidAccount when untested."""
    with transaction.atomic():
        account = _locked(account)
        account.is_outbound_enabled = account.is_outbound_enabled or outbound
        account.is_inbound_enabled = account.is_inbound_enabled or inbound
        problems = _model_problems(account) + _sign_in_problems(account)
        if problems:
            raise InvalidAccount([Problem(_key(field), *rest) for field, *rest in problems])
        save_account(account, SIDES.values())
    return account


def disable(
    account: AgentEmailAccount, *, outbound: bool = False, inbound: bool = False
) -> AgentEmailAccount:
    """Switches directions off. Mail on its way waits until it is enabled again, moved, or expires."""
    with transaction.atomic():
        account = _locked(account)
        account.is_outbound_enabled = account.is_outbound_enabled and not outbound
        account.is_inbound_enabled = account.is_inbound_enabled and not inbound
        save_account(account, SIDES.values())
    return account


def delete(account: AgentEmailAccount) -> None:
    """Removes the account and its secrets, and revokes its tokens. Its endpoint and all history stay."""
    credential = AgentEmailOAuthCredential.objects.filter(account=account.pk).first()
    account.delete()
    if credential is not None:
        transaction.on_commit(lambda: revoke(credential))


def _locked(account: AgentEmailAccount) -> AgentEmailAccount:
    return AgentEmailAccount.objects.select_for_update().get(pk=account.pk)
