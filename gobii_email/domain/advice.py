"""What to tell the owner of a mailbox: one plain sentence or two for each kind of answer.

The keys are the categories of readings, and a finer key where a provider deserves its own words.
Texts name the remedy, never a code, a secret, or anything the owner cannot act on.
"""

from collections.abc import Mapping
from types import MappingProxyType

ADVICE: Mapping[str, str] = MappingProxyType(
    {
        # What needs the owner.
        "auth": (
            "The server refused the user name or password. Enter them again; if they are right, "
            "the provider may want an app password or a sign-in with OAuth."
        ),
        "auth-app-password": (
            "Gmail, and other providers with two-step verification, want an app password: create "
            "one in the account's security settings and enter it here in place of the normal "
            "password."
        ),
        "auth-gmail": (
            "Google did not accept the user name and password. A normal Google password never "
            "works here: create an app password (two-step verification must be on), or sign in "
            "with Google."
        ),
        "auth-web-login": (
            "The provider wants a person to sign in with a web browser once, confirm that it was "
            "you, and then to test the account here again."
        ),
        "auth-microsoft": (
            "Microsoft refused the sign-in. Check the password, or sign in with Microsoft; "
            "Outlook.com no longer accepts passwords from mail programs at all."
        ),
        "auth-microsoft-disabled": (
            "SMTP sign-in is switched off for this mailbox or organisation. An administrator must "
            "enable 'Authenticated SMTP' for the mailbox in the Microsoft 365 admin centre."
        ),
        "auth-microsoft-basic": (
            "Microsoft no longer accepts a password for sending from this mailbox: passwords are off by "
            "default from the end of December 2026, and new organisations get none. Sign in with "
            "Microsoft (OAuth) in place of the password."
        ),
        "auth-required": (
            "The server wants a sign-in before it takes mail. Set the authentication method, user "
            "name and password of this account."
        ),
        "auth-mechanism": (
            "The server does not know the chosen sign-in method. Choose another one (plain, login or OAuth)."
        ),
        "auth-oauth": (
            "The access token is not accepted: the sign-in with the provider has expired, was withdrawn, or "
            "does not allow this. Connect the account again, or give new tokens."
        ),
        "token-unavailable": (
            "The provider's sign-in service issues no access token just now. We try again; nothing to do."
        ),
        "tls-required": (
            "The server wants an encrypted connection. Set security to STARTTLS (usually port "
            "587) or SSL (port 465)."
        ),
        "sender-rejected": (
            "The server does not let this login send with this From address. Use the mailbox's "
            "own address, or have the address added as an alias or verified sender at the "
            "provider."
        ),
        "account-suspended": (
            "The provider has stopped this mailbox from sending. Sign in at the provider, follow "
            "what it asks, and test the account here again."
        ),
        "error-throttling": (
            "Microsoft has stopped this mailbox because too many of its messages failed in a row. "
            "Correct the cause (a full mailbox, a wrong From address, bad recipients) before it "
            "is resumed."
        ),
        "own-mailbox-full": (
            "The sending mailbox is full, so the provider cannot file what it sends. Make room in "
            "it, then resume the account."
        ),
        "settings": (
            "Host, port, security or authentication of this account do not fit the server. "
            "Compare them with the provider's instructions, then test the account again."
        ),
        "certificate": (
            "The server's certificate is not valid, so nothing was sent to it, not even the "
            "password. Check the host name; otherwise the server's operator must renew the "
            "certificate. We look again every hour."
        ),
        "host-unknown": (
            "There is no server of that name. Check the host name of this account for a typing error."
        ),
        "address-not-allowed": (
            "The host name leads to a network that we do not connect to. Use the provider's "
            "public mail server."
        ),
        "port-not-allowed": "We do not connect to that port. Use 465 or 587.",
        "starttls-missing": (
            "The server does not offer STARTTLS, so nothing was sent in clear. Check host and "
            "port, or use SSL on port 465."
        ),
        "auth-missing": (
            "The server does not offer the chosen sign-in method. Choose another one, and check "
            "that security is on: many servers offer a sign-in only on encrypted connections."
        ),
        "auth-without-tls": (
            "The password was not sent, because the connection is not encrypted. Set security to "
            "STARTTLS or SSL."
        ),
        "secret-unreadable": "The stored password cannot be read any more. Enter it again.",
        # What only a test meets, where somebody sits before the screen. A key with the protocol behind it
        # has that protocol's own words.
        "dns-failed": "The name could not be looked up just now. Test again in a few minutes.",
        "port-closed": (
            "Nothing answers at that port of the server. Check host and port: sending uses 465 with SSL/TLS "
            "or 587 with STARTTLS."
        ),
        "port-closed/imap": (
            "Nothing answers at that port of the server. Check host and port: reading mail uses 993 with "
            "SSL/TLS or 143 with STARTTLS."
        ),
        "hung-up": (
            "The server broke the connection off. Check host and port, and test again in a few minutes; "
            "some servers hang up on those who connect too often."
        ),
        "too-slow": (
            "The server takes the connection but does not answer in time. Check host and port, and test "
            "again in a few minutes; if it stays like this, ask the server's operator."
        ),
        "no-answer": (
            "Nothing came back from the server. Check host and port; a firewall between here and there may "
            "drop connections to that port. Test again in a few minutes."
        ),
        "certificate-expired": (
            "The server's certificate has run out, so nothing was said to it, not even the password. Its "
            "operator must renew it; no setting here can help."
        ),
        "certificate-not-yet-valid": (
            "The server's certificate begins in the future, so nothing was said to it. Its operator must "
            "correct it, or somebody the clock of this machine."
        ),
        "certificate-wrong-name": (
            "The server's certificate is not for this host name, so nothing was said to it, not even the "
            "password. If the provider's instructions name one of the names it is for, enter that as the "
            "host; otherwise the server's operator must correct the certificate."
        ),
        "certificate-untrusted": (
            "Nobody who is trusted here vouches for the server's certificate, so nothing was said to it, not "
            "even the password. Its operator must install one of a public authority; an in-house authority "
            "is added by whoever runs this service (SSL_CERT_FILE)."
        ),
        "tls-failed": (
            "No encrypted connection came about: the server must offer TLS 1.2 or newer. Check host, port "
            "and security; otherwise ask the server's operator."
        ),
        "tls-hung-up": (
            "The server broke off while the encryption was agreed on. Check port and security; one that only "
            "knows versions older than TLS 1.2 may do this as well."
        ),
        "starttls-injection": (
            "Something was slipped into the connection before it was encrypted, so nothing more was said "
            "and no password was sent. Choose SSL/TLS on port 465; if that is not offered, warn the "
            "server's operator."
        ),
        "starttls-injection/imap": (
            "Something was slipped into the connection before it was encrypted, so nothing more was said "
            "and no password was sent. Choose SSL/TLS on port 993; if that is not offered, warn the "
            "server's operator."
        ),
        "starttls-missing/imap": (
            "The server does not offer STARTTLS, so nothing was sent in clear. Check host and port, or use "
            "SSL/TLS on port 993."
        ),
        "not-the-protocol": (
            "What answers there is no mail server for sending. Check host and port: sending uses 465 with "
            "SSL/TLS or 587 with STARTTLS."
        ),
        "not-the-protocol/imap": (
            "What answers there is no mail server for reading. Check host and port: reading mail uses 993 "
            "with SSL/TLS or 143 with STARTTLS."
        ),
        "flood": (
            "The server sent more than an answer may hold, so the connection was closed. Check host and "
            "port; no proper mail server does this."
        ),
        "port-not-allowed/imap": "We do not connect to that port. Use 993 (SSL/TLS) or 143 (STARTTLS).",
        "speaks-tls": (
            "On this port the server speaks TLS from the first byte: set security to SSL/TLS (STARTTLS "
            "belongs to port 587)."
        ),
        "speaks-tls/imap": (
            "On this port the server speaks TLS from the first byte: set security to SSL/TLS (STARTTLS "
            "belongs to port 143)."
        ),
        "speaks-starttls": (
            "On this port the server begins in clear: set security to STARTTLS (SSL/TLS belongs to port 465)."
        ),
        "speaks-starttls/imap": (
            "On this port the server begins in clear: set security to STARTTLS (SSL/TLS belongs to port 993)."
        ),
        "pair-wants-ssl": "This port usually speaks TLS from the first byte: choose SSL/TLS for it.",
        "pair-wants-starttls": "This port usually begins in clear: choose STARTTLS for it.",
        "microsoft-passwords-end": (
            "Microsoft ends passwords for sending: off by default from the end of December 2026, not offered "
            "to new organisations after that. Sign in with Microsoft before then."
        ),
        "secret-missing": "Enter the password again, or sign in with the provider.",
        "slow-greeting": (
            "The server lets those who connect wait before it greets them. Mail will still go, only slowly."
        ),
        "certificate-ends-soon": "The server's certificate ends soon; its operator should renew it in time.",
        "not-encrypted": "Everything on this connection can be read on its way. Choose SSL/TLS or STARTTLS.",
        "offers-differ": (
            "What the server offers before and after encryption differs by more than the sign-in, which "
            "may be a wrong setting of the server. What it offered encrypted is what counts."
        ),
        "mail-refused": (
            "The server took the sign-in but not the sender address; its own words say why. Usually this "
            "login may not send as this address: use the mailbox's own address, or have it added as an alias "
            "or verified sender at the provider."
        ),
        "own-address-refused": (
            "The server accepts the sender, and refuses its own address as a recipient. Mail to others can "
            "usually be sent; look whether the mailbox takes mail, and whether this login may send as it."
        ),
        "self-mail-not-found": (
            "The mail was accepted, but it was not in the inbox in time. Look into the spam folder, or "
            "whether the mailbox files such mail elsewhere."
        ),
        "preauth": (
            "The server says that it already knows who we are, before it was told and before anything was "
            "encrypted, so the test ends here: mail could be read from a stranger's mailbox. Choose SSL/TLS "
            "on port 993; if it still happens, ask the server's operator."
        ),
        "auth-missing/imap": (
            "The server does not offer a sign-in that fits the settings. Check that security is on: many "
            "servers offer a sign-in only on encrypted connections."
        ),
        "auth-microsoft-imap": (
            "Microsoft no longer accepts a password for reading this mailbox. Sign in with Microsoft (OAuth) "
            "in place of the password, and see that IMAP is switched on for the mailbox."
        ),
        "imap-disabled": (
            "Reading by IMAP is switched off for this mailbox. Switch it on in the mailbox's own settings, "
            "or ask an administrator to."
        ),
        "password-not-ascii": (
            "The password has letters beyond plain ASCII, and this server has no sign-in that can carry "
            "them. Set a password of plain letters, digits and signs at the provider, and enter it here."
        ),
        "folder-missing": "Choose a folder that the mailbox has; INBOX is always there.",
        "no-uid-validity": (
            "The server does not say which generation of the folder this is, so mail may be read twice after "
            "it was rebuilt."
        ),
        "folder-name": "Enter the folder's name without line breaks.",
        "read-only-refused": "The server did not let the folder be opened. Choose another one.",
        # What only takes time.
        "quota": (
            "The provider's sending limit is reached. We pause this account and go on by "
            "ourselves when the limit allows it; nothing needs to be done."
        ),
        "rate-limit": "The server asked for a slower pace. We wait and go on by ourselves.",
        "connection-limit": (
            "The server takes fewer connections at a time than we opened. We use fewer and go on "
            "by ourselves."
        ),
        "login-limit": "The server has seen too many sign-ins in a short time. We wait before the next one.",
        "recipient-limit": "This recipient is getting more mail than the server lets in. We try again later.",
        "auth-temporary": (
            "The server could not check the sign-in just now. We try again; nothing is wrong with "
            "the password as far as we know."
        ),
        "greylist": "The server asks every unknown sender to come back later. We do.",
        "server-busy": "The server is busy or being repaired. We try again.",
        "temporary": "The server could not take the message just now. We try again.",
        "too-many-recipients": (
            "The message has more recipients than the server takes at once. We send to the others "
            "separately where the server lets us; otherwise use fewer recipients in a message."
        ),
        "unreachable": "The server could not be reached, or broke the connection off. We try again.",
        "in-doubt": (
            "The connection broke after the message was handed over and before the server "
            "confirmed it. It may have been sent; we look for evidence and do not send it twice."
        ),
        "interrupted": "Our own sender was interrupted before the message was handed over. We try again.",
        # What ends a message.
        "unknown-user": "There is no such mailbox at the recipient's domain. Check the address.",
        "mailbox-disabled": "The recipient's mailbox is closed or switched off.",
        "mailbox-full": "The recipient's mailbox is full.",
        "dns": (
            "The recipient's domain does not exist or cannot receive mail. Check the address after the @."
        ),
        "expired": "The server kept trying to deliver the message and gave up.",
        "relay-denied": (
            "The server does not pass mail on to this recipient for this account. If every "
            "recipient is refused like this, check that the account signs in."
        ),
        "routing-loop": (
            "The message was going round in circles between servers. The recipient's forwarding "
            "is set up wrongly."
        ),
        "size": "The message is larger than the server takes. Send a link in place of the attachment.",
        "content": (
            "The server refused the message for what is in it: a virus, a forbidden attachment, "
            "or a malformed part."
        ),
        "policy/spam": (
            "The server refused the message as spam or by its own rules. Look at the text, the "
            "links and the sender's SPF, DKIM and DMARC records."
        ),
        "smtputf8": "The server cannot handle the international characters in this address.",
        "protocol": (
            "The server did not understand what was said to it. If it happens again, check host and port."
        ),
        "refused": "The server refused for good; its own words say why.",
        "accepted": "The server accepted this.",
    }
)


BLAMES_TOKEN = "auth-oauth"  # noqa: S105
BLAMES_PASSWORD = (
    "auth",
    "auth-app-password",
    "auth-gmail",
    "auth-microsoft",
    "auth-microsoft-basic",
    "auth-microsoft-imap",
)


def for_token(advice: str) -> str:
    """What to say in place of `advice` where the login was one with an access token, and no password."""
    return ADVICE[BLAMES_TOKEN] if advice in {ADVICE[key] for key in BLAMES_PASSWORD} else advice


def advice_for(key: str) -> str:
    """The advice for `key`; raises KeyError for a key that has none."""
    return ADVICE[key]
