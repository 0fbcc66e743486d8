"""A Celery worker under a sampling profiler: `python -m benchmarks.sampler OUT -A worker worker …`.

Every five milliseconds the processor time that each thread has used since the last look is added to the
stack it stands on, so threads that wait count nothing. OUT is rewritten each second, as JSON.
"""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from celery.bin.celery import main as celery
from celery.signals import worker_ready

EVERY = 0.005
Stack = tuple[tuple[str, str], ...]


def sample(out: Path) -> None:
    spent: Counter[Stack] = Counter()
    before: dict[int, int] = {}
    me = threading.get_ident()
    written = time.monotonic()
    # Python hands its lock over this often, so that samples do not gather at system calls alone.
    sys.setswitchinterval(0.0005)
    while True:
        time.sleep(EVERY)
        for ident, frame in sys._current_frames().items():
            now = time.clock_gettime_ns(time.pthread_getcpuclockid(ident))
            used = now - before.get(ident, now)
            before[ident] = now
            if used and ident != me:
                spent[_stack(frame)] += used
        if time.monotonic() - written > 1:
            written = time.monotonic()
            _write(out, spent)


def _stack(frame: FrameType | None) -> Stack:
    """(file, function) from the innermost outwards."""
    found = []
    while frame is not None:
        found.append(
            (frame.f_code.co_filename, frame.f_code.co_qualname if sys.version_info >= (3, 11) else "")
        )
        frame = frame.f_back
    return tuple(found)


def _write(out: Path, spent: Counter[Stack]) -> None:
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps([[list(stack), used] for stack, used in spent.items()]))
    fresh.replace(out)


@worker_ready.connect
def start(**_: object) -> None:
    threading.Thread(target=sample, args=(OUT,), name="sampler", daemon=True).start()


def report(out: Path, mails: int, top: int = 25) -> str:
    """Milliseconds a mail: by our own innermost module, by any module, by function."""
    rows = [
        ([tuple(frame) for frame in stack], used / 1e6 / mails) for stack, used in json.loads(out.read_text())
    ]
    total = sum(used for _, used in rows)
    part, module, inclusive = Counter[str](), Counter[str](), Counter[str]()
    for stack, used in rows:
        part[next((_name(file) for file, _ in stack if _is_ours(file)), _name(stack[-1][0]))] += used
        module[_name(stack[0][0])] += used
        for label in {f"{_name(file)}.{function}" for file, function in stack if _is_worth_naming(file)}:
            inclusive[label] += used
    lines = [f"{total:.2f} ms of processor a mail, sampled"]
    for title, found in (
        ("by our own innermost module, what it calls included", part),
        ("by module, itself alone", module),
        ("by function, what it calls included", inclusive),
    ):
        lines += ["", title]
        lines += [
            f"  {used:6.3f} ms {100 * used / total:5.1f} %  {name}" for name, used in found.most_common(top)
        ]
    return "\n".join(lines)


def _is_ours(file: str) -> bool:
    return "/gobii_email/" in file or file.endswith(("worker/tasks.py", "worker/hooks.py"))


def _is_worth_naming(file: str) -> bool:
    return _is_ours(file) or "site-packages" in file or "smtplib" in file or "/ssl.py" in file


def _name(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    start = parts.index("site-packages") + 1 if "site-packages" in parts else max(0, len(parts) - 3)
    if "gobii_email" in parts:
        start = parts.index("gobii_email")
    return ".".join(parts[start:])


if __name__ == "__main__":
    OUT = Path(sys.argv.pop(1))
    sys.argv[0] = "celery"
    sys.exit(celery())
