"""A real Exim on free loopback ports, with everything it needs in a directory of its own.

One server with several doors: submission as hosting companies offer it, and one door for each thing that can
be wrong with a server's TLS. It runs from where `.ci/exim` unpacked it, without root's rights; mail for other
domains is thrown away, and nothing leaves the machine.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import gobii_email
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import OwnedServer, ServerUnavailable, free_port, greets, is_root

LOOPBACK = "127.0.0.1"
MAX_MESSAGE_BYTES = 1_000_000
DOORS = ("starttls", "implicit", "clear", "expired", "wrong_host", "self_signed")

_UNPACKED = Path(gobii_email.__file__).resolve().parent.parent / "var" / "exim"
_UNPRIVILEGED = 65534
_OWNER = "Debian-exim"

# Words in capitals are macros, defined before it. Which directory a mail goes to is looked up and not made
# of what the client wrote, as Exim demands.
_CONFIGURATION = r"""
keep_environment = *
exim_path = HERE/exim
exim_user = OWNER
exim_group = TEAM
deliver_drop_privilege
spool_directory = HERE/spool
log_file_path = HERE/log/%s
pid_file_path = HERE/exim.pid
primary_hostname = mail.DOMAIN
domainlist ours = DOMAIN
local_interfaces = 127.0.0.1
daemon_smtp_ports = PORTS
tls_on_connect_ports = IMPLICIT
tls_advertise_hosts = ${if eq{$received_port}{CLEAR}{}{*}}
tls_certificate = HERE/tls/${if exists{HERE/tls/$received_port.pem}{$received_port}{good}}.pem
auth_advertise_hosts = ${if eq{$tls_in_cipher}{}{}{*}}
message_size_limit = SIZE
acl_smtp_mail = check_sender
acl_smtp_rcpt = check_recipient
acl_smtp_data = accept
host_lookup =
log_selector = +incoming_port +smtp_connection

begin acl

check_sender:
  deny condition = ${if def:authenticated_id}
       condition = ${if !eqi{$sender_address}{$authenticated_id}}
       message = Sender address $sender_address does not belong to the login $authenticated_id
  accept

check_recipient:
  deny domains = +ours
       ! verify = recipient
       message = Unknown user
  accept authenticated = *
  deny message = relay not permitted, authentication required

begin routers

ours:
  driver = accept
  domains = +ours
  address_data = ${lookup{$local_part@$domain}lsearch{HERE/mailboxes}{$value}fail}
  transport = mailbox

unknown:
  driver = redirect
  domains = +ours
  allow_fail
  data = :fail: Unknown user

elsewhere:
  driver = redirect
  data = :blackhole:

begin transports

mailbox:
  driver = appendfile
  directory = HERE/mail/$address_data
  maildir_format
  create_directory
  return_path_add
  user = OWNER
  group = TEAM

begin authenticators

plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if eq{$auth3}{${lookup{$auth2}lsearch{HERE/passwords}{$value}fail}}}
  server_set_id = $auth2

login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if eq{$auth2}{${lookup{$auth1}lsearch{HERE/passwords}{$value}fail}}}
  server_set_id = $auth1

xoauth2:
  driver = plaintext
  public_name = XOAUTH2
  server_prompts = :
  server_condition = ${if match{$auth1}{\N^user=([^\x01]+)\x01auth=Bearer ([^\x01]+)\x01\x01$\N}\
    {${if eq{$2}{${lookup{$1}lsearch{HERE/tokens}{$value}fail}}}}{no}}
  server_set_id = ${sg{$auth1}{\N^user=([^\x01]+)\x01.*$\N}{\$1}}
"""


class RealExim(OwnedServer):
    """`with RealExim(authority, {"anna@mail.example": "secret"}) as exim: exim.ports["starttls"]`.

    `users` sign in with their address (PLAIN or LOGIN), those of `tokens` with a token (XOAUTH2); they
    may send as themselves alone and have a mailbox, as `mailboxes` have. All are in one domain. Raises
    ServerUnavailable, saying what to do, where it cannot run.
    """

    name = "exim"

    def __init__(
        self,
        authority: ThrowAwayAuthority,
        users: Mapping[str, str],
        tokens: Mapping[str, str] = {},  # noqa: B006
        mailboxes: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if not (_UNPACKED / "usr/sbin/exim4").exists():
            raise ServerUnavailable("Exim is not there: run .ci/exim, which unpacks Debian's into var/exim.")
        self._authority = authority
        self._users = dict(users)
        self._tokens = dict(tokens)
        self._addresses = (*users, *tokens, *mailboxes)
        self._uid, self._gid = (_UNPRIVILEGED, _UNPRIVILEGED) if is_root() else (os.getuid(), os.getgid())
        self.ports: dict[str, int] = {}

    @property
    def log(self) -> str:
        """What it has said since it started: its main log, and whom it turned away."""
        files = sorted((self.directory / "log").glob("*"))
        return "\n".join(path.read_text(errors="replace") for path in files)

    def mailbox(self, address: str) -> list[bytes]:
        """What lies in the mailbox of `address`, the oldest first."""
        files = sorted((self.directory / "mail" / address / "new").glob("*"), key=lambda path: path.name)
        return [path.read_bytes() for path in files]

    def _command(self) -> list[str]:
        self.ports["starttls"] = self.port
        (self.directory / "exim.conf").write_text(self._macros() + _CONFIGURATION)
        here = self.directory
        exim = [str(here / "exim"), "-C", str(here / "exim.conf"), "-bdf"]
        return [*self._without_privileges(), *self._with_made_up_names(), *exim]

    def _is_ready(self) -> bool:
        return greets(self.port, b"220 ")

    def _without_privileges(self) -> list[str]:
        ids = [f"--reuid={self._uid}", f"--regid={self._gid}", "--clear-groups"]
        return ["setpriv", *ids] if is_root() else []

    def _with_made_up_names(self) -> list[str]:
        """Debian's Exim insists on a user Debian-exim, who need not exist outside of a file of ours."""
        return [
            "/usr/bin/env",
            f"LD_LIBRARY_PATH={self.directory / 'lib'}",
            "LD_PRELOAD=libnss_wrapper.so",
            f"NSS_WRAPPER_PASSWD={self.directory / 'passwd'}",
            f"NSS_WRAPPER_GROUP={self.directory / 'group'}",
        ]

    def _macros(self) -> str:
        values = {
            "HERE": self.directory,
            "OWNER": _OWNER,
            "TEAM": _OWNER,
            "DOMAIN": self._addresses[0].partition("@")[2],
            "PORTS": " : ".join(map(str, self.ports.values())),
            "IMPLICIT": self.ports["implicit"],
            "CLEAR": self.ports["clear"],
            "SIZE": MAX_MESSAGE_BYTES,
        }
        return "".join(f"{name} = {value}\n" for name, value in values.items())

    def _prepare(self) -> None:
        # A copy, because nobody else may look into the directory where the checkout is.
        shutil.copy(_UNPACKED / "usr/sbin/exim4", self.directory / "exim")
        (libraries,) = (_UNPACKED / "usr/lib").glob("*-linux-*")
        shutil.copytree(
            libraries, self.directory / "lib", ignore=shutil.ignore_patterns("cmake", "pkgconfig")
        )
        self.ports = {door: free_port() for door in DOORS}
        self._write_names()
        self._write_table("passwords", self._users)
        self._write_table("tokens", self._tokens)
        self._write_table("mailboxes", {address: address for address in self._addresses})
        self._write_certificates()
        for name in ("spool", "log", "mail"):
            (self.directory / name).mkdir()
        self._give_away()

    def _write_names(self) -> None:
        users = (("root", 0, 0), (_OWNER, self._uid, self._gid))
        groups = (("root", 0), (_OWNER, self._gid), ("mail", 8))
        lines = (f"{name}:x:{uid}:{gid}::/:/bin/sh\n" for name, uid, gid in users)
        (self.directory / "passwd").write_text("".join(lines))
        (self.directory / "group").write_text("".join(f"{name}:x:{gid}:\n" for name, gid in groups))

    def _write_table(self, name: str, rows: Mapping[str, str]) -> None:
        (self.directory / name).write_text("".join(f"{key}: {value}\n" for key, value in rows.items()))

    def _write_certificates(self) -> None:
        directory = self.directory / "tls"
        directory.mkdir()
        certificates = {
            "good": self._authority.good_certificate(),
            self.ports["expired"]: self._authority.expired_certificate(),
            self.ports["wrong_host"]: self._authority.wrong_host_certificate(),
            self.ports["self_signed"]: self._authority.self_signed_certificate(),
        }
        for name, certificate in certificates.items():
            certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))

    def _give_away(self) -> None:
        for path in (self.directory, *self.directory.rglob("*")):
            shutil.chown(path, self._uid, self._gid)
