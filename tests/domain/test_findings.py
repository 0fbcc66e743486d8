"""What each failure of a test means: the advice, and whether it passes by itself."""

import pytest

from gobii_email.domain.advice import ADVICE
from gobii_email.domain.findings import (
    IMAP,
    SMTP,
    UNTOLD,
    oddities,
    of_loss,
    of_refusal,
    of_reply,
    of_wrong_security,
)
from gobii_email.domain.imap_replies import category_of, refusal_from
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.smtp_replies import Stage, parse_reply

OWN = "mail.sender.example"


@pytest.mark.parametrize("protocol", [SMTP, IMAP])
@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_advice_that_speaks_to_somebody_before_the_screen(
    cause: Cause, protocol: str
) -> None:
    advice = of_loss(protocol, Lost(Stage.CONNECT, cause, "x")).advice
    assert bool(advice) is (cause not in UNTOLD)
    assert " We " not in advice or advice.startswith("We do not connect")


@pytest.mark.parametrize(
    ("cause", "smtp", "imap"),
    [
        (Cause.CONNECTION_REFUSED, "465 with SSL/TLS", "993 with SSL/TLS"),
        (Cause.PROTOCOL_ERROR, "for sending", "for reading"),
        (Cause.STARTTLS_NOT_OFFERED, "port 465", "port 993"),
        (Cause.STARTTLS_INJECTION, "port 465", "port 993"),
        (Cause.PORT_NOT_ALLOWED, "465 or 587", "993"),
    ],
)
def test_ports_are_named_for_the_protocol_that_was_tested(cause: Cause, smtp: str, imap: str) -> None:
    lost = Lost(Stage.CONNECT, cause, "x")
    assert smtp in of_loss(SMTP, lost).advice and imap in of_loss(IMAP, lost).advice


@pytest.mark.parametrize(
    ("cause", "is_lasting"),
    [
        (Cause.TIMEOUT, False),
        (Cause.CONNECTION_REFUSED, False),
        (Cause.DNS_FAILED, False),
        (Cause.CERTIFICATE_EXPIRED, True),
        (Cause.HOST_UNKNOWN, True),
        (Cause.STARTTLS_NOT_OFFERED, True),
        (Cause.SECRET_UNREADABLE, True),
    ],
)
def test_what_passes_by_itself_is_told_from_what_lasts(cause: Cause, is_lasting: bool) -> None:
    assert of_loss(SMTP, Lost(Stage.CONNECT, cause, "x")).is_lasting is is_lasting


@pytest.mark.parametrize("protocol", [SMTP, IMAP])
@pytest.mark.parametrize(("speaks", "said"), [("tls", "SSL/TLS"), ("starttls", "STARTTLS")])
def test_the_security_that_a_server_speaks_is_named(protocol: str, speaks: str, said: str) -> None:
    finding = of_wrong_security(protocol, speaks)
    assert f"set security to {said}" in finding.advice and finding.is_lasting


@pytest.mark.parametrize(
    ("host", "reply", "said"),
    [
        ("smtp.gmail.com", "534 5.7.9 Application-specific password required", "app password"),
        ("smtp.gmail.com", "535 5.7.8 Username and Password not accepted", "app password"),
        ("smtp.office365.com", "535 5.7.139 SmtpClientAuthentication is disabled for the Tenant", "admin"),
        ("smtp.office365.com", "550 5.7.30 Basic authentication is not supported", "December 2026"),
        ("smtp.fastmail.com", "535 5.7.8 Incorrect username or password", "Fastmail: "),
        (OWN, "530 5.7.0 Must issue a STARTTLS command first", "STARTTLS"),
        (OWN, "535 5.7.8 authentication failed", "user name or password"),
    ],
)
def test_a_refused_login_is_told_in_the_words_for_its_provider(host: str, reply: str, said: str) -> None:
    finding = of_reply(host, Stage.AUTH, parse_reply(reply))
    assert said in finding.advice and finding.is_lasting and finding.reading is not None


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        (Stage.AUTH, "454 4.7.0 Temporary authentication failure"),
        (Stage.AUTH, "421 4.7.0 Too many login attempts, please try again later"),
        (Stage.CONNECT, "421 4.3.2 Service not available"),
        (Stage.MAIL, "432 4.3.2 Concurrent connections limit exceeded"),
        (Stage.MAIL, "450 4.2.0 Greylisted"),
        (Stage.MAIL, "550 5.4.5 Daily user sending quota exceeded"),
        (Stage.MAIL, "454 4.7.0 Throttling failure: Maximum sending rate exceeded."),
    ],
)
def test_what_passes_by_itself_promises_nothing_that_only_mail_does(stage: Stage, reply: str) -> None:
    finding = of_reply(OWN, stage, parse_reply(reply))
    assert not finding.is_lasting
    assert " We " not in finding.advice and "Test again" in finding.advice


@pytest.mark.parametrize(
    ("host", "command", "said", "category"),
    [
        (OWN, "LOGIN", "NO [AUTHENTICATIONFAILED] Authentication failed.", "auth"),
        (OWN, "LOGIN", "NO Login failed", "auth"),
        (OWN, "AUTHENTICATE", "BAD what", "auth"),
        ("imap.gmail.com", "LOGIN", "NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", "auth-gmail"),
        (
            "imap.gmail.com",
            "LOGIN",
            "NO [ALERT] Application-specific password required: https://support.google.com/x (Failure)",
            "auth-app-password",
        ),
        ("imap.gmail.com", "LOGIN", "NO [ALERT] Please log in via your web browser: x", "auth-web-login"),
        ("outlook.office365.com", "LOGIN", "NO LOGIN failed.", "auth-microsoft-imap"),
        (OWN, "LOGIN", "NO [UNAVAILABLE] Temporary authentication failure.", "temporary"),
        (OWN, "LOGIN", "NO [PRIVACYREQUIRED] Plaintext authentication disallowed", "tls-required"),
        (OWN, "LOGIN", "NO [CONTACTADMIN] account locked", "account-suspended"),
        (OWN, "LOGIN", "NO [LIMIT] too many logins", "login-limit"),
        (OWN, "LOGIN", "NO Your account is not enabled for IMAP use.", "imap-disabled"),
        (OWN, "EXAMINE", "NO [NONEXISTENT] Unknown Mailbox: x", "folder-missing"),
        (OWN, "EXAMINE", "NO Mailbox doesn't exist: x", "folder-missing"),
        (OWN, "LIST", "NO cannot", "refused"),
        (OWN, "SEARCH", "BYE shutting down", "temporary"),
    ],
)
def test_what_mailbox_servers_say_is_understood(host: str, command: str, said: str, category: str) -> None:
    status, _, rest = said.partition(" ")
    refusal = refusal_from(command, status, rest)
    provider = {"imap.gmail.com": "google", "outlook.office365.com": "microsoft365"}.get(host, "")
    assert category_of(refusal, provider) == category and category in ADVICE
    finding = of_refusal(host, refusal)
    assert finding.advice and finding.is_lasting is (category not in ("temporary", "login-limit"))


def test_a_hostile_refusal_is_made_safe_to_show() -> None:
    refusal = refusal_from("LOGIN", "NO", b"[ALERT" + b"\x1b[31m\r\n" * 1000 + "\u202eevil".encode())
    assert "\x1b" not in str(refusal) and "\n" not in str(refusal) and len(str(refusal)) < 1100


@pytest.mark.parametrize(
    ("protocol", "host", "port", "security", "auth", "said"),
    [
        (SMTP, OWN, 465, "starttls", "plain", "choose SSL/TLS"),
        (SMTP, OWN, 465, "none", "plain", "choose SSL/TLS"),
        (SMTP, OWN, 587, "ssl", "plain", "choose STARTTLS"),
        (IMAP, OWN, 993, "starttls", "login", "choose SSL/TLS"),
        (IMAP, OWN, 143, "ssl", "login", "choose STARTTLS"),
        (SMTP, "smtp.office365.com", 587, "starttls", "login", "December 2026"),
        (SMTP, "smtp.office365.com", 587, "starttls", "oauth2", ""),
        (SMTP, OWN, 587, "starttls", "plain", ""),
        (SMTP, OWN, 465, "ssl", "plain", ""),
        (SMTP, OWN, 2525, "ssl", "plain", ""),
        (IMAP, OWN, 993, "ssl", "login", ""),
    ],
)
def test_settings_that_fit_no_server_are_told_before_it_is_asked(
    protocol: str, host: str, port: int, security: str, auth: str, said: str
) -> None:
    found = " ".join(oddities(protocol, host, port, security, auth))
    assert (said in found) if said else (found == "")


@pytest.mark.parametrize("words", ["550 Administrative prohibition", "550 5.7.1 Go away", "550 No."])
def test_a_refused_sender_is_told_as_such_where_the_server_says_little(words: str) -> None:
    assert "sender address" in of_reply(OWN, Stage.MAIL, parse_reply(words)).advice
    assert "sender address" not in of_reply(OWN, Stage.RCPT, parse_reply(words)).advice
