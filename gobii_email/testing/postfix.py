"""A real Postfix on free loopback ports, with everything it needs in a directory of its own.

One server with several doors: submission as providers offer it, and one door for each thing that can
be wrong with a server's TLS. Nothing of the system's Postfix is read or started, mail for other
domains is thrown away, and nothing leaves the machine.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import OwnedServer, ServerUnavailable, free_port, greets, is_root

LOOPBACK = "127.0.0.1"
MAX_MESSAGE_BYTES = 1_000_000

_MASTERS = (Path("/usr/lib/postfix/sbin/master"), Path("/usr/libexec/postfix/master"))
_SASL_MODULES = ("*/sasl2/liblogin.so*", "sasl2/liblogin.so*")
_QUEUES = "active bounce corrupt defer deferred flush hold incoming private saved trace"
_SHARED_QUEUES = {"maildrop": 0o730, "public": 0o710}
_INSTALL = "install Debian's postfix, sasl2-bin and libsasl2-modules."

_MAIN = """\
compatibility_level = 3.6
config_directory = {here}/etc
queue_directory = {here}/queue
data_directory = {here}/data
maillog_file = {here}/mail.log
maillog_file_prefixes = {here}
myhostname = mail.{domain}
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_error_sleep_time = 0
message_size_limit = {max_message_bytes}
virtual_mailbox_limit = 0
virtual_mailbox_domains = {domain}
virtual_mailbox_maps = texthash:{here}/etc/mailboxes
virtual_alias_maps = texthash:{here}/etc/aliases
virtual_mailbox_base = {here}/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
alias_maps =
local_transport = virtual
default_transport = discard
relay_transport = discard
transport_maps = texthash:{here}/etc/routes
smtp_tls_security_level = none
smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject
smtpd_sender_login_maps = regexp:{here}/etc/owners
smtpd_sasl_type = {sasl_type}
smtpd_sasl_path = {sasl_path}
cyrus_sasl_config_path = {here}/etc/sasl
smtpd_tls_loglevel = 1
"""
_MASTER = """\
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
smtp      unix - - n - - smtp
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""
_LOGIN = {
    "smtpd_sasl_auth_enable": "yes",
    "smtpd_tls_auth_only": "yes",
    "smtpd_sender_restrictions": "reject_sender_login_mismatch",
}
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "starttls": _LOGIN | {"smtpd_tls_security_level": "encrypt"},
    "implicit": _LOGIN | {"smtpd_tls_security_level": "encrypt", "smtpd_tls_wrappermode": "yes"},
    "plain": {"smtpd_tls_security_level": "none", "mynetworks": "127.0.0.0/8"},
    "clear_login": _LOGIN | {"smtpd_tls_security_level": "none", "smtpd_tls_auth_only": "no"},
    "expired": _LOGIN | {"smtpd_tls_security_level": "encrypt"},
    "wrong_host": _LOGIN | {"smtpd_tls_security_level": "encrypt"},
    "self_signed": _LOGIN | {"smtpd_tls_security_level": "encrypt"},
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it lies in a mailbox: what Postfix put before it, and what it was given."""

    trace: bytes
    content: bytes


class RealPostfix(OwnedServer):
    """`with RealPostfix(authority, {"anna@mail.example": "secret"}) as postfix: postfix.ports["starttls"]`.

    `users` sign in with their address (PLAIN or LOGIN), may send as themselves alone, and have a
    mailbox, as `mailboxes` have; all are in one domain. Raises ServerUnavailable, saying what to
    install, where it cannot run. `aliases` lead from one address to another, which need not exist:
    such mail is accepted, and bounces. `routes` lead mail for other domains to a server on a port of this
    machine; it is thrown away without. With `dovecot_port` it asks the Dovecot there who may log in.
    """

    name = "postfix"

    def __init__(
        self,
        authority: ThrowAwayAuthority,
        users: Mapping[str, str],
        mailboxes: Iterable[str] = (),
        aliases: Mapping[str, str] = {},  # noqa: B006
        dovecot_port: int | None = None,
        routes: Mapping[str, int] = {},  # noqa: B006
    ) -> None:
        super().__init__()
        self._master = _master()
        self._authority = authority
        self._users = dict(users)
        self._aliases = dict(aliases)
        self._routes = {domain: f"smtp:[{LOOPBACK}]:{port}" for domain, port in routes.items()}
        self._addresses = (*users, *mailboxes)
        self._logins = ("dovecot", f"inet:{LOOPBACK}:{dovecot_port}") if dovecot_port else ("cyrus", "smtpd")
        self.ports: dict[str, int] = {}

    @property
    def log(self) -> str:
        """What it has said since it started; each door has its own name in it."""
        found = self.directory / "mail.log"
        return found.read_text(errors="replace") if found.exists() else ""

    def log_of(self, door: str) -> str:
        return "\n".join(line for line in self.log.splitlines() if f"postfix/{door}/" in line)

    def queue_ids(self) -> set[str]:
        """Under which it has taken mail over."""
        return set(re.findall(r"/cleanup\[\d+\]: (\w+): message-id=", self.log))

    def mailbox(self, address: str) -> list[Delivery]:
        """What lies in the mailbox of `address`, the oldest first."""
        directory = self.directory / "mailboxes" / address / "new"
        files = sorted(directory.glob("*"), key=lambda path: path.stat().st_mtime_ns)
        return [_delivery(path.read_bytes()) for path in files]

    def _command(self) -> list[str]:
        self._write_services()
        return [str(self._master), "-c", str(self._etc), "-d"]

    def _is_ready(self) -> bool:
        return greets(self.port, b"220 ")

    @property
    def _etc(self) -> Path:
        return self.directory / "etc"

    def _prepare(self) -> None:
        self.directory.chmod(0o711)
        self._etc.mkdir()
        self.ports = {door: free_port() for door in _OPTIONS}
        self._make_directories()
        self._write_main()
        self._write_certificates()
        self._write_logins()

    def _make_directories(self) -> None:
        for path in ("queue", "queue/pid"):
            (self.directory / path).mkdir()
        for path in ("data", *(f"queue/{name}" for name in _QUEUES.split())):
            self._make(path, 0o700, "postfix")
        for name, mode in _SHARED_QUEUES.items():
            self._make(f"queue/{name}", mode, "postfix", "postdrop")
        self._make("mailboxes", 0o700, "nobody")

    def _make(self, path: str, mode: int, user: str, group: str | None = None) -> None:
        made = self.directory / path
        made.mkdir()
        shutil.chown(made, user, group)
        made.chmod(mode)

    def _write_main(self) -> None:
        domain = self._addresses[0].partition("@")[2]
        nobody = (self.directory / "mailboxes").stat().st_uid
        values = {"here": self.directory, "domain": domain, "max_message_bytes": MAX_MESSAGE_BYTES}
        values |= dict(zip(("sasl_type", "sasl_path"), self._logins, strict=True))
        (self._etc / "main.cf").write_text(_MAIN.format(**values, uid=nobody, gid=nobody))
        self._write_table("mailboxes", {address: f"{address}/" for address in self._addresses})
        self._write_table("aliases", self._aliases)
        self._write_table("routes", self._routes)
        (self._etc / "owners").write_text("/^(.+)$/ ${1}\n")

    def _write_table(self, name: str, rows: Mapping[str, str]) -> None:
        (self._etc / name).write_text("".join(f"{key} {value}\n" for key, value in rows.items()))

    def _write_services(self) -> None:
        self.ports["starttls"] = self.port
        doors = [
            f"{LOOPBACK}:{self.ports[door]} inet n - n - - smtpd\n"
            f"  -o syslog_name=postfix/{door} -o smtpd_tls_chain_files={self._chain(door)}\n"
            f"  {' '.join(f'-o {name}={value}' for name, value in options.items())}\n"
            for door, options in _OPTIONS.items()
        ]
        (self._etc / "master.cf").write_text(_MASTER + "".join(doors))

    def _chain(self, door: str) -> Path:
        own = self._etc / f"{door}.pem"
        return own if own.exists() else self._etc / "good.pem"

    def _write_certificates(self) -> None:
        certificates = {
            "good": self._authority.good_certificate(),
            "expired": self._authority.expired_certificate(),
            "wrong_host": self._authority.wrong_host_certificate(),
            "self_signed": self._authority.self_signed_certificate(),
        }
        for name, certificate in certificates.items():
            certificate.private_key_and_cert_chain_pem.write_to_path(str(self._etc / f"{name}.pem"))

    def _write_logins(self) -> None:
        # The directory's name is fixed in Debian's build, which does not read cyrus_sasl_config_path.
        directory = self._etc / "sasl"
        directory.mkdir()
        passwords = directory / "passwords"
        lines = ("pwcheck_method: auxprop", "auxprop_plugin: sasldb", "mech_list: PLAIN LOGIN")
        (directory / "smtpd.conf").write_text("\n".join((*lines, f"sasldb_path: {passwords}", "")))
        for address, password in self._users.items():
            user, _, realm = address.partition("@")
            command = ["saslpasswd2", "-c", "-p", "-f", str(passwords), "-u", realm, user]
            subprocess.run(command, input=password.encode(), check=True, capture_output=True)
        shutil.chown(passwords, "postfix")


def _master() -> Path:
    """Postfix's master. Raises ServerUnavailable where it, its logins or the right to run it are missing."""
    found = next((path for path in _MASTERS if path.exists()), None)
    has_logins = any(list(Path("/usr/lib").glob(pattern)) for pattern in _SASL_MODULES)
    if found is None or not has_logins or shutil.which("saslpasswd2") is None:
        raise ServerUnavailable(f"Postfix or its logins are not there: {_INSTALL}")
    if not is_root():
        raise ServerUnavailable("Postfix can be started by root alone.")
    return found


def _delivery(data: bytes) -> Delivery:
    """`data` parted after what Postfix writes first: Return-Path to the last line of its Received."""
    found = re.match(
        rb"(?:(?:Return-Path|X-Original-To|Delivered-To|Received):[^\n]*\n(?:[ \t][^\n]*\n)*)+", data
    )
    end = found.end() if found else 0
    return Delivery(data[:end], data[end:])
