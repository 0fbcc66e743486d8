"""A test of a mailbox's server: all steps up to the open folder, which is not changed.

Walks the very dialogue that polls use, so that a test cannot pass where a poll would fail. Which account is
tested, and who may see the result, is decided by the services.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from gobii_email.adapters.dialer import DialFailed, DialPolicy
from gobii_email.adapters.imap_dialogue import ImapDeadlines, ImapDialogue
from gobii_email.adapters.imap_session import Declined
from gobii_email.adapters.probe import (
    Act,
    Found,
    Missed,
    OnLine,
    OnStep,
    greeted,
    walk,
    warned,
)
from gobii_email.adapters.probe_opening import Target, encrypted, opening
from gobii_email.adapters.second_look import PATIENCE, SecondLook
from gobii_email.adapters.wire import Broken
from gobii_email.domain.advice import advice_for
from gobii_email.domain.findings import IMAP, Finding, of_loss, of_refusal
from gobii_email.domain.outcomes import Lost, SessionFacts
from gobii_email.domain.smtp_replies import Stage, safe_text
from gobii_email.ports import Auth, ImapServer, Probe, ProbeFailure, Security

SHOWN_FOLDERS = 20

_UNSPOKEN = (Broken, Declined, DialFailed)
_STAGES = {"tls": Stage.TLS, "starttls": Stage.TLS, "auth": Stage.AUTH}


class ImapProbe:
    """One test of `server`; `on_line` hears what is said, redacted."""

    def __init__(
        self,
        server: ImapServer,
        policy: DialPolicy,
        deadlines: ImapDeadlines,
        on_line: OnLine | None = None,
    ) -> None:
        self._server = server
        self._deadlines = replace(deadlines, greeting=min(deadlines.greeting, deadlines.probe * PATIENCE))
        self._target = Target.of(server, policy, deadlines)
        self._dialogue = self._connection(on_line)
        self._second_look = SecondLook(IMAP, self._target, server.security, self._connection, _UNSPOKEN)
        self._folders: Sequence[str] = ()

    def walk(self, until: str, on_step: OnStep) -> Probe:
        """The steps, up to the first failure or `until`."""
        with closing(self._dialogue):
            plan = list(self._plan())
            steps, failure = walk(plan, self._explain, _UNSPOKEN, until=until, on_step=on_step)
            return Probe(steps, failure, SessionFacts(tls=self._dialogue.tls))

    def _plan(self) -> Iterator[tuple[str, Act]]:
        security = self._server.security
        yield from opening(self._target, security, self._dialogue)
        yield "greeting", self._read_greeting
        if security is Security.STARTTLS:
            yield "starttls", self._ask_for_tls
            yield "tls", lambda: encrypted(self._dialogue)
        yield "capabilities", self._read_capabilities
        yield "auth", self._log_in
        yield "list", self._list_folders
        yield "select", self._examine

    def _connection(self, on_line: OnLine | None = None) -> ImapDialogue:
        target = self._target
        return ImapDialogue(
            self._server, target.policy, self._deadlines, target.deadline, target.known, on_line
        )

    # Steps

    def _read_greeting(self) -> Found:
        return greeted(lambda: self._second_look.before_long(self._dialogue))

    def _ask_for_tls(self) -> Found:
        self._dialogue.ask_for_tls()
        return Found("The server agrees to encrypt.")

    def _read_capabilities(self) -> Found:
        offered = [safe_text(word) for word in self._dialogue.read_capabilities()]
        return Found(f"Offers {', '.join(offered)}.", {"capabilities": offered})

    def _log_in(self) -> Found:
        self._dialogue.log_in()
        return Found(f"Signed in with {self._dialogue.mechanism}.", self._login_facts())

    def _login_facts(self) -> dict[str, object]:
        return {"mechanism": self._dialogue.mechanism, "offered": self._dialogue.offered_logins}

    def _list_folders(self) -> Found:
        self._folders = [safe_text(name, max_characters=100) for name in self._dialogue.list_folders()]
        facts = {"count": len(self._folders), "folders": self._folders[:SHOWN_FOLDERS]}
        return Found(f"Folders: {self._some_folders()}.", facts)

    def _some_folders(self) -> str:
        more = ["…"] if len(self._folders) > SHOWN_FOLDERS else []
        return ", ".join([*self._folders[:SHOWN_FOLDERS], *more]) or "none"

    def _examine(self) -> Found:
        folder = self._dialogue.examine(self._server.folder)
        facts = {
            "folder": folder.name,
            "messages": folder.messages,
            "uid_validity": folder.uid_validity,
            "uid_next": folder.uid_next,
        }
        text = f"{folder.name} can be opened; messages in it: {folder.messages}."
        if folder.uid_validity is None:
            return warned("no-uid-validity", text, **facts)
        return Found(text, facts)

    # What went wrong

    def _explain(self, step: str, ended: Exception) -> Missed:
        if isinstance(ended, Declined):
            return self._declined(step, ended)
        assert isinstance(ended, Broken | DialFailed)
        lost = Lost(_STAGES.get(step, Stage.CONNECT), ended.cause, ended.text)
        advice = ended.advice if isinstance(ended, Broken) else ""
        finding = Finding(advice_for(advice), True) if advice else of_loss(IMAP, lost)
        missed = Missed(ProbeFailure(ended.text, finding, lost.stage, lost=lost))
        if step == "auth":
            return replace(missed, facts=self._login_facts())
        return missed if advice else self._second_look.explain(step, missed, ended.cause)

    def _declined(self, step: str, ended: Declined) -> Missed:
        refusal, challenge = ended.refusal, self._dialogue.challenge if step == "auth" else ""
        text = f"The server answered {refusal} (at {step})."
        if step == "select":
            text = f"The folder {self._server.folder} cannot be opened; there are: {self._some_folders()}."
        facts = self._login_facts() if step == "auth" else {}
        raw = "\n".join(filter(None, (str(refusal), challenge)))
        finding = of_refusal(self._server.host, refusal, by_token=self._server.auth is Auth.OAUTH2)
        return Missed(ProbeFailure(text, finding), facts, raw)
