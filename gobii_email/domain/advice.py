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
            "Microsoft no longer accepts a password for sending from this mailbox. Sign in with "
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
            "The sign-in with the provider has expired or was withdrawn. Connect the account again."
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


def advice_for(key: str) -> str:
    """The advice for `key`; raises KeyError for a key that has none."""
    return ADVICE[key]
