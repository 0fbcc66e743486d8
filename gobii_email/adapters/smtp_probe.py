"""A connection test: all steps of a submission short of a message.

Walks the very dialogue that submissions use, so that a test cannot pass where a mail would fail.
Which account is tested, and who may see the result, is decided by the services.
"""

import time
from collections.abc import Callable

from gobii_email.adapters.dialer import DialFailed
from gobii_email.adapters.smtp_dialogue import Dialogue, Step
from gobii_email.adapters.smtp_session import Denied
from gobii_email.adapters.wire import Broken
from gobii_email.ports import Auth, Probe, ProbeFailure, ProbeStep, Security, SmtpServer


def probe(dialogue: Dialogue, sender: str, recipient: str | None) -> Probe:
    """The steps, up to the first failure; `recipient` adds a RCPT TO."""
    plan = [*dialogue.opening(), ("mail", lambda: dialogue.name_sender(sender))]
    if recipient is not None:
        plan.append(("rcpt", lambda: dialogue.name_recipient(recipient)))
    steps: list[ProbeStep] = []
    for name, step in plan:
        failure = _try(dialogue, name, step, steps)
        if failure is not None:
            done = len(steps)
            steps += [ProbeStep(later, "skipped", "Not reached.") for later, _step in plan[done:]]
            return Probe(_with_gaps(dialogue.server, steps), failure, dialogue.facts())
    facts = dialogue.facts()
    steps += _courtesies(dialogue)
    return Probe(_with_gaps(dialogue.server, steps), None, facts)


def _try(
    dialogue: Dialogue, name: str, step: Callable[[], str], steps: list[ProbeStep]
) -> ProbeFailure | None:
    """Takes one step and notes it down; the failure when it could not be taken."""
    began = time.monotonic()
    failure = None
    try:
        status, text = "ok", step()
    except Denied as ended:
        status, text = "fail", str(ended.reply)
        failure = ProbeFailure(dialogue.stage, reply=ended.reply)
    except (Broken, DialFailed) as ended:
        status, text = "fail", ended.text
        failure = ProbeFailure(dialogue.stage, lost=dialogue.lost(ended.cause, ended.text))
    steps.append(ProbeStep(name, status, text, round((time.monotonic() - began) * 1000)))
    return failure


def _courtesies(dialogue: Dialogue) -> list[ProbeStep]:
    """RSET, NOOP and QUIT: a server that fumbles them still takes mail, so they only warn."""
    steps: list[ProbeStep] = []
    farewells: list[Step] = [
        ("rset", lambda: dialogue.ask("RSET")),
        ("noop", lambda: dialogue.ask("NOOP")),
        ("quit", dialogue.quit),
    ]
    for name, step in farewells:
        _try(dialogue, name, step, steps)
    return [
        ProbeStep(step.name, "warn" if step.status == "fail" else step.status, step.text, step.milliseconds)
        for step in steps
    ]


def _with_gaps(server: SmtpServer, steps: list[ProbeStep]) -> list[ProbeStep]:
    """`steps` with those that the account's settings leave out, and a word on why."""
    if server.security is Security.NONE:
        _insert_before(("auth", "mail"), steps, ProbeStep("tls", "warn", "The connection is not encrypted."))
    if server.auth is Auth.NONE:
        text = "The account is set to send without a login."
        _insert_before(("mail",), steps, ProbeStep("auth", "skipped", text))
    return steps


def _insert_before(names: tuple[str, ...], steps: list[ProbeStep], gap: ProbeStep) -> None:
    position = next(at for at, step in enumerate(steps) if step.name in names)
    steps.insert(position, gap)
