"""The demonstration itself: connects the mailbox, sends the mails, tells each timeline, judges the end.

Imported once Django is set up. A mail ended as it should when its status, its attempts, and what the
submission server really has of it are all as its scene says.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage

from demo.scenes import SCENES, Cast, Scene, outside
from demo.screen import Screen
from demo.stage import MAIL_USER, Stage
from gobii_email.api import DeliveryStatus, delivery_status
from gobii_email.domain.composition import ATTEMPT_HEADER
from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.models import (
    CommsChannel,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services.status import is_over
from gobii_email.testing.smtp_server import AcceptedMessage, Faults

LONGEST_SECONDS = 45


@dataclass(frozen=True, slots=True)
class Result:
    """How a scene ended; `problems` are empty when it ended as it should."""

    scene: Scene
    status: str
    attempts: int
    seconds: float
    copies: int
    problems: tuple[str, ...]


def connect_mailbox(stage: Stage, screen: Screen) -> Cast:
    """Everybody who takes part. Ada's account goes the way an operator goes."""
    address = f"ada-{stage.suffix}@agents.example"
    screen.heading(f"Connecting the mailbox {address}")
    stage.manage("email_account", "apply", "-", text=json.dumps(_account(stage, address)))
    screen.note("email_account apply: stored, its password encrypted")
    test = json.loads(stage.manage("email_account", "test", address, "--smtp", "--json"))
    for step in test["steps"]:
        screen.fact(step["name"], f"{step['status']}, {step['milliseconds']} ms. {step['text']}")
    screen.note(f"email_account test: {test['text']}")
    stage.manage("email_account", "enable", address, "--outbound")
    screen.note("email_account enable: its mail now leaves through its own server")
    return Cast(
        ada=PersistentAgentCommsEndpoint.objects.get(address=address, owner_agent__isnull=False),
        sim=_endpoint_without_account(stage.suffix),
        letter=_letter(stage.suffix),
    )


def _account(stage: Stage, address: str) -> dict[str, object]:
    smtp = {
        "host": stage.server.host,
        "port": stage.server.port,
        "security": "starttls",
        "auth": "plain",
        "username": MAIL_USER,
        "password": stage.mail_password,
    }
    # The server is ours: without this it would be sent to with the care that an unknown provider gets.
    limits = {"per_minute": 600, "per_hour": 6000, "per_day": 60000, "max_connections": 4}
    return {
        "agent": f"Ada {stage.suffix}",
        "address": address,
        "display_name": "Ada, an agent",
        "smtp": smtp,
        "limits": limits,
    }


def _endpoint_without_account(suffix: str) -> PersistentAgentCommsEndpoint:
    agent = PersistentAgent.objects.create(name=f"Sim {suffix}")
    return PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel=CommsChannel.EMAIL, address=f"sim-{suffix}@agents.example"
    )


def _letter(suffix: str) -> PersistentAgentMessage:
    """A mail that Grace wrote to Ada earlier, the second of a conversation."""
    return PersistentAgentMessage.objects.create(
        is_outbound=False,
        latest_status="delivered",
        from_endpoint=outside("grace@example.org"),
        subject="Can you help?",
        body="Can you help me?",
        rfc_message_id=f"<second.{suffix}@example.org>",
        raw_payload={"references": f"<first.{suffix}@example.org>"},
    )


def play_all(stage: Stage, cast: Cast, screen: Screen) -> list[Result]:
    results = [play(number, scene, stage, cast, screen) for number, scene in enumerate(SCENES, start=1)]
    stage.server.faults = Faults()
    return results


def play(number: int, scene: Scene, stage: Stage, cast: Cast, screen: Screen) -> Result:
    """Sends one mail and follows it to its end."""
    screen.heading(f"{number}. {scene.title}")
    stage.server.faults = scene.faults
    started = time.monotonic()
    message = scene.send(cast)
    report = _follow(message, scene, stage, screen)
    seconds = time.monotonic() - started
    copies = [copy for copy in stage.server.messages if _parsed(copy)["Message-ID"] == report.rfc_message_id]
    problems = tuple(_problems(scene, message, report, copies))
    right = not problems
    screen.line(f"  {'✓' if right else '✗'} {report.status}", "green" if right else "red")
    for problem in problems:
        screen.fact("", problem)
    return Result(scene, report.status, len(report.attempts), seconds, len(copies), problems)


def _follow(message: PersistentAgentMessage, scene: Scene, stage: Stage, screen: Screen) -> DeliveryStatus:
    """Prints what happens as it happens, until the message's status is final or too much time has passed."""
    deadline = time.monotonic() + LONGEST_SECONDS
    told = set()
    may_kill = scene.kills_worker
    while True:
        report = delivery_status(message)
        for entry in report.timeline:
            if entry not in told:
                told.add(entry)
                screen.moment(entry.at, entry.text)
        if is_over(report.status) or time.monotonic() > deadline:
            return report
        if may_kill and stage.server.faults.times["RCPT"] <= 0:
            may_kill = False
            _kill_worker(report, stage, screen)
        time.sleep(0.05)


def _kill_worker(report: DeliveryStatus, stage: Stage, screen: Screen) -> None:
    holder = OutboundMessageAttempt.objects.get(pk=report.attempts[-1].attempt_id).lease_owner
    killed = stage.kill_worker(holder)
    screen.note(f"kill -9 {killed.pid} ({killed.name}), which waited for the answer to RCPT")
    started = stage.start_worker()
    screen.note(f"{started.name} started in its place")


def _problems(
    scene: Scene, message: PersistentAgentMessage, report: DeliveryStatus, copies: list[AcceptedMessage]
) -> Iterator[str]:
    if report.status != scene.status:
        yield f"It is {report.status}, and should be {scene.status}. {report.waiting_for or ''}".strip()
    if len(report.attempts) != scene.attempts:
        yield f"It took {len(report.attempts)} attempts, and should take {scene.attempts}."
    if len(copies) != scene.copies:
        yield f"The server got it {len(copies)} times, and should get it {scene.copies} times."
    for copy in copies:
        yield from _problems_on_the_wire(scene, message, report, copy)


def _problems_on_the_wire(
    scene: Scene, message: PersistentAgentMessage, report: DeliveryStatus, copy: AcceptedMessage
) -> Iterator[str]:
    mail = _parsed(copy)
    sent_in = [attempt.attempt_id for attempt in report.attempts if attempt.status == AttemptStatus.SENT]
    if [mail[ATTEMPT_HEADER]] != sent_in:
        yield f"{ATTEMPT_HEADER} is {mail[ATTEMPT_HEADER]}, and should be {' '.join(sent_in) or 'absent'}."
    if sorted(copy.recipients) != sorted(scene.recipients):
        yield f"It went to {', '.join(copy.recipients)}, and should go to {', '.join(scene.recipients)}."
    if "Bcc" in mail or any(hidden.encode() in copy.content for hidden in scene.hidden):
        yield "It names somebody who is in Bcc."
    if not copy.is_encrypted or copy.user != MAIL_USER:
        yield "It came without TLS or without signing in."
    yield from _problems_of_the_thread(mail, message.parent)
    found = {part.get_filename(): part.get_payload(decode=True) for part in mail.walk()}
    for file in scene.files:
        if found.get(file.filename) != file.content:
            yield f"The file {file.filename} is missing or changed."


def _problems_of_the_thread(mail: EmailMessage, parent: PersistentAgentMessage | None) -> Iterator[str]:
    answered = parent.rfc_message_id if parent else None
    if mail["In-Reply-To"] != answered:
        yield f"In-Reply-To is {mail['In-Reply-To']}, and should be {answered}."
    references = f"{parent.raw_payload['references']} {answered}" if parent else None
    if mail["References"] != references:
        yield f"References is {mail['References']}, and should be {references}."


def _parsed(copy: AcceptedMessage) -> EmailMessage:
    return message_from_bytes(copy.content, policy=policy.default)


def summarise(results: list[Result], screen: Screen) -> bool:
    """The table; answers whether every mail ended as it should."""
    screen.heading("Summary")
    screen.line(_row(" ", "mail", "expected", "status", "att", "secs", "copies"), "dim")
    for result in results:
        mark, colour = ("✗", "red") if result.problems else ("✓", "green")
        facts = (result.status, str(result.attempts), f"{result.seconds:.1f}", str(result.copies))
        screen.line(_row(mark, result.scene.title, result.scene.status, *facts), colour)
    return not any(result.problems for result in results)


def _row(mark: str, mail: str, expected: str, status: str, attempts: str, seconds: str, copies: str) -> str:
    return f"{mark} {mail:<32} {expected:<14} {status:<14} {attempts:>3} {seconds:>4} {copies:>6}"
