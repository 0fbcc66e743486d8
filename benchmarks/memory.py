"""What a worker's memory does over many mails, and over one very large mail.

Resident memory is read from /proc; the broker's from its own INFO. `python -m benchmarks.memory --help`.
"""

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.rig import REUSED, Rig, resident_bytes

MB = 1024 * 1024
CHUNK = 5000


def over_many(rig: Rig, count: int, threads: int, seconds: float) -> dict[str, Any]:
    """Resident memory after each share of `count` mails, which are queued while the worker sends."""
    senders = rig.accounts("many", 20, REUSED)
    rig.start(1, threads)
    stop = threading.Event()

    def queue() -> None:
        for start in range(0, count, CHUNK):
            if not stop.is_set():
                rig.submit(senders, min(CHUNK, count - start))

    queueing = threading.Thread(target=queue)
    queueing.start()
    deadline = time.monotonic() + seconds
    samples = [(0, resident_bytes(rig.workers[0].pid)[0])]
    while samples[-1][0] < count and time.monotonic() < deadline:
        time.sleep(0.5)
        samples.append((rig.sink.count(), resident_bytes(rig.workers[0].pid)[0]))
    stop.set()
    queueing.join()
    rig.stop()
    marks = {share: _at(samples, share * samples[-1][0] / 100) for share in (0, 10, 25, 50, 75, 100)}
    second_half = [sample for sample in samples if sample[0] >= samples[-1][0] / 2]
    mails = max(1, second_half[-1][0] - second_half[0][0])
    return {
        "mails": samples[-1][0],
        "resident_mb": {str(share): found / MB for share, found in marks.items()},
        "growth_bytes_per_mail": (second_half[-1][1] - second_half[0][1]) / mails,
    }


def _at(samples: list[tuple[int, int]], mails: float) -> int:
    return next(resident for sent, resident in samples if sent >= mails)


def over_one_large(rig: Rig, megabytes: int, threads: int) -> dict[str, Any]:
    """The peaks while one mail of so many megabytes on the wire is submitted and sent by a warm worker."""
    (sender,) = rig.accounts("large", 1, REUSED)
    rig.start(1, threads)
    already = rig.sink.count()
    rig.submit([sender], 20)
    rig.sink.wait_for(already + 20, seconds=60)
    worker = rig.workers[0].pid
    # Sets the kernel's mark of the most resident memory back to what is resident now.
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before, redis_before = resident_bytes(worker)[0], rig.redis_memory()[0]
    # Base64 makes four bytes of three, and ends its lines.
    attachment = rig.directory / "large.bin"
    attachment.write_bytes(os.urandom(int(megabytes * MB * 0.73)))
    started = time.monotonic()
    flags = ["--from", sender, "--to", "to@rcpt.example", "--subject", "Large", "--body", "See the file."]
    rig.stack.manage("email_send", *flags, "--attach", str(attachment)).check_returncode()
    submitted = time.monotonic()
    arrived = rig.sink.wait_for(already + 21, seconds=60) > already + 20
    sent = time.monotonic()
    time.sleep(1)
    now, peak = resident_bytes(worker)
    redis_peak = rig.redis_memory()[1]
    wire = rig.sink.accepted(already + 20)[-1][5] if arrived else 0
    rig.stop()
    return {
        "wire_mb": wire / MB,
        "submit_seconds": submitted - started,
        "send_seconds": sent - submitted,
        "worker_before_mb": before / MB,
        "worker_peak_mb": peak / MB,
        "worker_after_mb": now / MB,
        "peak_times_mail": (peak - before) / wire if wire else None,
        "redis_before_mb": redis_before / MB,
        "redis_peak_mb": redis_peak / MB,
    }


def compare(count: int, megabytes: int, threads: int, seconds: float) -> dict[str, Any]:
    with Rig({"GOBII_MAX_MESSAGE_BYTES": "60000000"}) as rig:
        large = over_one_large(rig, megabytes, threads)
    print(large_line(large), flush=True)
    with Rig() as rig:
        many = over_many(rig, count, threads, seconds)
    print(many_line(many), flush=True)
    return {"large": large, "many": many}


def large_line(row: dict[str, Any]) -> str:
    if not row["wire_mb"]:
        return "one large mail: it did NOT arrive"
    return (
        f"one mail of {row['wire_mb']:.1f} MB: the worker goes from {row['worker_before_mb']:.0f} to at most "
        f"{row['worker_peak_mb']:.0f} MB ({row['peak_times_mail']:.1f} times the mail) and back to "
        f"{row['worker_after_mb']:.0f} MB; Redis from {row['redis_before_mb']:.1f} to at most "
        f"{row['redis_peak_mb']:.1f} MB; {row['send_seconds']:.1f} s"
    )


def many_line(row: dict[str, Any]) -> str:
    marks = ", ".join(f"{share} %: {found:.0f}" for share, found in row["resident_mb"].items())
    return (
        f"{row['mails']} mails: resident MB after {marks}; in the second half "
        f"{row['growth_bytes_per_mail']:.0f} bytes more a mail"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=20_000)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    document = compare(options.mails, options.megabytes, options.threads, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
