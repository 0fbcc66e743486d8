"""A real Dovecot on free loopback ports, with everything it needs in a directory of its own.

One server with several doors: STARTTLS and TLS from the first byte, with the certificate that it is given.
Nothing of the system's Dovecot is read or started, and mail lies in that directory.
"""

import pwd
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme
from imapclient.imap_utf7 import encode

from gobii_email.testing.processes import OwnedServer, ServerUnavailable, free_port, greets, is_root

LOOPBACK = "127.0.0.1"
_PROGRAM = "/usr/sbin/dovecot"
_ADMIN = "/usr/bin/doveadm"
_INSTALL = "install Debian's dovecot-imapd."
_OWNER = "nobody"

_CONF = """\
protocols = imap
listen = 127.0.0.1
base_dir = {here}/run
state_dir = {here}/run
log_path = {here}/dovecot.log
auth_failure_delay = 0
auth_mechanisms = {mechanisms}
auth_verbose = yes
disable_plaintext_auth = yes
first_valid_uid = 1
first_valid_gid = 1
ssl = required
ssl_cert = <{here}/server.pem
ssl_key = <{here}/server.pem
mail_location = maildir:{mail}/%u:LAYOUT=fs
namespace inbox {{
  inbox = yes
  separator = /
{marked}}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {here}/users
}}
{tokens}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={mail}/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {starttls}
  }}
  inet_listener imaps {{
    port = {implicit}
    ssl = yes
  }}
}}
service auth {{
  inet_listener {{
    address = 127.0.0.1
    port = {sasl}
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""


# Asks who issued them whether tokens are good, and whose (RFC 7662).
_TOKENS = """\
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {here}/oauth2.conf
}}
"""
_INTROSPECTION = """\
introspection_mode = post
introspection_url = {url}
username_attribute = email
active_attribute = active
active_value = true
"""


class RealDovecot(OwnedServer):
    """`with RealDovecot(certificate, {"anna@mail.example": "secret"}) as dovecot: dovecot.ports["implicit"]`.

    `folders` are made in every mailbox beside INBOX. Raises ServerUnavailable, saying what to install, where
    it cannot run. The doors are `starttls` and `implicit`; at `sasl` a Postfix can ask who may log in. With
    `mail`, the mailboxes are those maildirs of somebody else's below that directory, by address. With
    `introspects_at`, the URL of an issuer that is asked about them, tokens are taken by their `mechanisms`.
    `marked` folders, which are made too, have a special use, such as `\\Sent`.
    """

    name = "dovecot"

    def __init__(
        self,
        certificate: trustme.LeafCert,
        users: Mapping[str, str],
        folders: Sequence[str] = (),
        mechanisms: Sequence[str] = ("plain", "login"),
        mail: Path | None = None,
        introspects_at: str = "",
        marked: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not Path(_PROGRAM).exists():
            raise ServerUnavailable(f"Dovecot is not there: {_INSTALL}")
        if not is_root():
            raise ServerUnavailable("Dovecot can be started by root alone.")
        self._certificate = certificate
        self._users = dict(users)
        self._folders = list(folders)
        self._mechanisms = mechanisms
        self._mail = mail
        self._introspects_at = introspects_at
        self._marked = dict(marked or {})
        self.ports: dict[str, int] = {}

    @property
    def log(self) -> str:
        """What it has said since it started."""
        found = self.directory / "dovecot.log"
        return found.read_text(errors="replace") if found.exists() else ""

    def put(self, address: str, content: bytes) -> None:
        """Lays a message into the inbox of `address`."""
        path = self._mailbox(address) / "new" / f"{time.time_ns()}.put"
        path.write_bytes(content)
        shutil.chown(path, _OWNER)

    def name_anew(self, address: str, generation: int) -> None:
        """Gives the inbox of `address` another UIDVALIDITY, under the locks of those who read it."""
        asked = ["mailbox", "update", "-u", address, "--uid-validity", str(generation), "INBOX"]
        subprocess.run([_ADMIN, "-c", str(self._conf), *asked], check=True, capture_output=True, timeout=60)

    @property
    def _conf(self) -> Path:
        return self.directory / "dovecot.conf"

    def _command(self) -> list[str]:
        self.ports["starttls"] = self.port
        self._write_configuration()
        return [_PROGRAM, "-F", "-c", str(self._conf)]

    def _is_ready(self) -> bool:
        return greets(self.port, b"* OK")

    def _mailbox(self, address: str) -> Path:
        return (self._mail or self.directory / "mail") / address

    def _prepare(self) -> None:
        self.directory.chmod(0o755)
        self.ports = {"implicit": free_port(), "sasl": free_port()}
        pem = self.directory / "server.pem"
        self._certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
        lines = [f"{address}:{{PLAIN}}{password}::::::" for address, password in self._users.items()]
        passwords = self.directory / "users"
        passwords.write_text("\n".join([*lines, ""]))
        shutil.chown(passwords, "dovecot")
        tokens = self.directory / "oauth2.conf"
        tokens.write_text(_INTROSPECTION.format(url=self._introspects_at))
        shutil.chown(tokens, "dovecot")
        tokens.chmod(0o600)
        if self._mail is None:
            self._make_mailboxes(self.directory / "mail")

    def _make_mailboxes(self, mail: Path) -> None:
        for address in self._users:
            self._make_mailbox(self._mailbox(address))
        for path in (mail, *mail.rglob("*")):
            shutil.chown(path, _OWNER)

    def _make_mailbox(self, mailbox: Path) -> None:
        for folder in ("", *(encode(name).decode() for name in (*self._folders, *self._marked))):
            for part in ("cur", "new", "tmp"):
                (mailbox / folder / part).mkdir(parents=True)

    def _write_configuration(self) -> None:
        owner = pwd.getpwnam(_OWNER)
        values = {
            "here": self.directory,
            "mail": self._mail or self.directory / "mail",
            "mechanisms": " ".join(self._mechanisms),
            "tokens": _TOKENS.format(here=self.directory) if self._introspects_at else "",
            "marked": "".join(
                f'  mailbox "{name}" {{\n    special_use = {use}\n  }}\n'
                for name, use in self._marked.items()
            ),
            "uid": owner.pw_uid,
            "gid": owner.pw_gid,
        }
        self._conf.write_text(_CONF.format(**values, **self.ports))
