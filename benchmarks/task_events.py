"""What Celery's task events cost one worker, in mails a second and in processor time a mail.

Simulated delivery, so that nothing but the queue, the database and the events is measured; each round has
a stack of its own. Run `python -m benchmarks.task_events` from the root of the repository.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gobii_email.testing.stack import Process, Stack

MAILS = 200
SECONDS = 45

SUBMIT = f"""
from django.db import transaction
from gobii_email import api
from gobii_email.models import PersistentAgent, PersistentAgentCommsEndpoint
agent = PersistentAgent.objects.create(name="Ada")
sender = PersistentAgentCommsEndpoint.objects.create(
    owner_agent=agent, channel="email", address="agent@sender.example"
)
with transaction.atomic():
    for number in range({MAILS}):
        api.send_agent_email(from_endpoint=sender, to="to@rcpt.example", subject="S", body="B")
"""
WAIT = f"""
import time
from gobii_email.models import OutboundMessageAttempt
done = OutboundMessageAttempt.objects.filter(status="delivered")
while done.count() < {MAILS}:
    time.sleep(0.1)
times = sorted(done.values_list("finished_at", flat=True))
print((times[-1] - times[0]).total_seconds())
"""


@dataclass(frozen=True, slots=True)
class Cost:
    per_second: float
    milliseconds: float


def measure(*, events: bool) -> Cost:
    """One worker of four threads; the processor time is all of its own, its start left out."""
    with tempfile.TemporaryDirectory() as directory:
        env = {"SIMULATE_EMAIL_DELIVERY": "1", "GOBII_TASK_EVENTS": str(int(events))}
        with Stack(Path(directory), env=env) as stack:
            # Started first and kept from working, so that its start is not measured.
            worker = stack.start_worker(options=("-l", "WARNING"))
            worker.freeze()
            stack.python(SUBMIT)
            before = processor_seconds(worker)
            worker.thaw()
            seconds = float(stack.python(WAIT))
            return Cost(MAILS / seconds, 1000 * (processor_seconds(worker) - before) / MAILS)


def processor_seconds(process: Process) -> float:
    """As Linux counts it: fields 14 and 15 of /proc/PID/stat."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    started = time.monotonic()
    found: dict[bool, list[Cost]] = {True: [], False: []}
    while time.monotonic() - started < SECONDS * 0.7:
        for events in (True, False):
            cost = measure(events=events)
            found[events].append(cost)
            state = "on " if events else "off"
            print(f"events {state}: {cost.per_second:.0f} mails/s, {cost.milliseconds:.1f} ms")
    # The best of each: whatever else the machine does can only make a round worse.
    speed = {key: max(cost.per_second for cost in costs) for key, costs in found.items()}
    work = {key: min(cost.milliseconds for cost in costs) for key, costs in found.items()}
    print(
        f"best of {len(found[True])}: {speed[True]:.0f} mails/s with events, {speed[False]:.0f} without",
        end="; ",
    )
    print(f"speed: {speed[True] / speed[False]:.2f}", end="; ")
    print(f"processor: {work[True]:.1f} ms a mail with events, {work[False]:.1f} without")


if __name__ == "__main__":
    main()
