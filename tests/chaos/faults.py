"""What can go wrong, each by a name: a function that does it to an arena and returns when it is over.

The server's faults strike by stage; deaths of workers are the server's too, since it alone knows which
connection stands where. Nothing here needs a hook in the service's code.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from gobii_email.testing.oracle import Rule, Trap
from gobii_email.testing.stack import Process
from tests.chaos.arena import Arena
from tests.chaos.plant import LEASE_SECONDS, Plant

STRIKES_WITHIN_SECONDS = 10.0

TEMPORARY = {
    "connect": "421 4.3.2 Service not available",
    "ehlo": "421 4.3.2 Service not available",
    "auth": "454 4.7.0 Temporary authentication failure",
    "mail": "451 4.3.0 Not now",
    "rcpt": "451 4.7.1 Greylisted",
    "data": "451 4.3.0 Not now",
    "dot": "451 4.3.0 Not now",
}
PERMANENT = {
    "rcpt": "550 5.1.1 No such user",
    "data": "554 5.6.0 Content rejected",
    "dot": "554 5.6.0 Content rejected",
}
KILL_STAGES = ("connect", "auth", "mail", "rcpt", "data", "body", "before_dot", "dot", "after_dot", "replied")


@dataclass(frozen=True, slots=True)
class Fault:
    """`act` answers whether it struck; `needs` names the database that alone can suffer it."""

    name: str
    act: Callable[[Any, random.Random], bool]
    needs: str = ""


def _server_rule(stage: str, do: str, reply: str = "", seconds: float = 5.0) -> Callable[..., bool]:
    def act(arena: Arena, chance: random.Random) -> bool:
        rule = Rule(stage, do, reply, seconds=seconds, times=chance.choice([1, 2, 4]), name=f"{do}:{stage}")
        arena.oracle.set_rules(rule)
        return _wait_for_strikes(arena, rule, rule.times or 1)

    return act


def _wait_for_strikes(arena: Arena, rule: Rule, times: int) -> bool:
    began = time.time()
    deadline = began + STRIKES_WITHIN_SECONDS
    while time.time() < deadline:
        struck = [
            line for line in arena.oracle.noted("fault") if line["rule"] == rule.name and line["at"] >= began
        ]
        if len(struck) >= times:
            time.sleep(rule.seconds if rule.do in {"late", "stall"} else 0)
            return True
        time.sleep(0.1)
    return False


def _kill_at(stage: str) -> Callable[..., bool]:
    def act(arena: Arena, chance: random.Random) -> bool:
        def kill(trap: Trap, worker: Process) -> None:
            worker.kill()

        return _worker_trap(arena, Rule(stage, "trap", skip=chance.randrange(6), name=f"kill:{stage}"), kill)

    return act


def _worker_trap(arena: Arena, rule: Rule, end: Callable[[Trap, Process], None]) -> bool:
    """Springs `rule` once and replaces the worker that `end` has ended."""
    struck: list[Process] = []

    def act(trap: Trap, worker: Process) -> None:
        end(trap, worker)
        struck.append(worker)

    arena.trap(rule, act).wait(STRIKES_WITHIN_SECONDS)
    arena.oracle.set_rules()
    for worker in struck:
        arena.replace(worker)
    return bool(struck)


def _freeze_at(stage: str) -> Callable[..., bool]:
    """SIGSTOP until others have taken its mail over, then SIGCONT: a dead man who comes back."""

    def act(arena: Arena, chance: random.Random) -> bool:
        frozen: list[Process] = []

        def freeze(trap: Trap, worker: Process) -> None:
            worker.freeze()
            frozen.append(worker)

        arena.trap(Rule(stage, "trap", name=f"freeze:{stage}"), freeze).wait(STRIKES_WITHIN_SECONDS)
        arena.oracle.set_rules()
        time.sleep(LEASE_SECONDS * 2)
        for worker in frozen:
            worker.thaw()
        return bool(frozen)

    return act


def _terminate_under_load(arena: Arena, chance: random.Random) -> bool:
    worker = chance.choice(arena.workers)
    ended = threading.Thread(target=worker.stop)
    ended.start()
    ended.join()
    arena.replace(worker)
    return True


def _kill_any(arena: Arena, chance: random.Random) -> bool:
    worker = chance.choice(arena.workers)
    worker.kill()
    arena.replace(worker)
    return True


def _kill_dispatcher(plant: Plant, chance: random.Random) -> bool:
    dispatcher = chance.choice(plant.dispatchers)
    dispatcher.kill()
    plant.dispatchers.remove(dispatcher)
    plant.start_dispatcher()
    return True


def _flush_redis(arena: Arena, chance: random.Random) -> bool:
    arena.redis().flushall()
    return True


def _lose_redis(arena: Arena, chance: random.Random) -> bool:
    """Killed, and its file with it."""
    arena.valkey.kill()
    for path in arena.valkey.directory.glob("appendonlydir/*"):
        path.unlink()
    time.sleep(chance.uniform(0, 1.5))
    arena.valkey.start()
    return True


def _restart_redis(arena: Arena, chance: random.Random) -> bool:
    """Killed, and back with everything it had written."""
    arena.valkey.kill()
    time.sleep(chance.uniform(0, 1.5))
    arena.valkey.start()
    return True


def _with_hints(
    change: Callable[["redis.Redis", str, list[bytes]], None], seconds: float
) -> Callable[..., bool]:
    """Applies `change` to the hints that are popped from the queue, again and again for `seconds`."""

    def act(arena: Arena, chance: random.Random) -> bool:
        client, struck = arena.redis(), 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                # Beside the workers, who wait at the same end: some hints are theirs, some ours.
                found = client.blpop([arena.queue], timeout=0.2)
                if found:
                    struck += 1
                    change(client, arena.queue, [found[1]])
            except redis.RedisError:
                time.sleep(0.1)
        return struck > 0

    return act


def _double(client: "redis.Redis", queue: str, hints: list[bytes]) -> None:
    client.lpush(queue, *hints, *hints, *hints)


def _delay(client: "redis.Redis", queue: str, hints: list[bytes]) -> None:
    def later() -> None:
        try:
            client.lpush(queue, *hints)
        except redis.RedisError:
            return

    threading.Timer(1.5, later).start()


def _lose(client: "redis.Redis", queue: str, hints: list[bytes]) -> None:
    return None


def _restart_postgres(*, immediate: bool) -> Callable[..., bool]:
    def act(arena: Arena, chance: random.Random) -> bool:
        assert arena.postgres is not None
        arena.postgres.restart(immediate=immediate)
        return True

    return act


def _step_clock(seconds: float) -> Callable[..., bool]:
    def act(plant: Plant, chance: random.Random) -> bool:
        plant.clock.write_text(str(seconds))
        time.sleep(2)
        plant.clock.write_text("0")
        return True

    return act


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in [
        *(Fault(f"kill:{stage}", _kill_at(stage)) for stage in KILL_STAGES),
        *(Fault(f"reset:{stage}", _server_rule(stage, "reset")) for stage in KILL_STAGES),
        *(Fault(f"4xx:{stage}", _server_rule(stage, "reply", reply)) for stage, reply in TEMPORARY.items()),
        *(Fault(f"5xx:{stage}", _server_rule(stage, "reply", reply)) for stage, reply in PERMANENT.items()),
        Fault("stall:rcpt", _server_rule("rcpt", "stall", seconds=5)),
        Fault("stall:after_dot", _server_rule("after_dot", "stall", seconds=10)),
        # Longer than the lease and within the deadline; longer than both.
        Fault("late:after_dot", _server_rule("after_dot", "late", seconds=LEASE_SECONDS * 1.5)),
        Fault("too_late:after_dot", _server_rule("after_dot", "late", seconds=10)),
        Fault("kill:any", _kill_any),
        Fault("sigterm", _terminate_under_load),
        *(
            Fault(f"freeze:{stage}", _freeze_at(stage))
            for stage in ("rcpt", "data", "before_dot", "after_dot")
        ),
        Fault("kill:dispatcher", _kill_dispatcher),
        Fault("redis:flush", _flush_redis),
        Fault("redis:lost", _lose_redis),
        Fault("redis:restart", _restart_redis),
        Fault("hints:doubled", _with_hints(_double, 2)),
        Fault("hints:delayed", _with_hints(_delay, 2)),
        Fault("hints:lost", _with_hints(_lose, 2)),
        Fault("postgres:fast", _restart_postgres(immediate=False), needs="postgresql"),
        Fault("postgres:immediate", _restart_postgres(immediate=True), needs="postgresql"),
        Fault("clock:forward", _step_clock(15)),
        Fault("clock:back", _step_clock(-15)),
    ]
}


def chosen(wanted: str, database: str) -> list[Fault]:
    """The faults named in `wanted` (a comma-separated list of names or their beginnings, or "all")."""
    parts = [part for part in wanted.split(",") if part]
    unknown = [part for part in parts if part != "all" and not _matching(part)]
    if unknown:
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    names = [name for name in FAULTS if "all" in parts or any(name in _matching(part) for part in parts)]
    return [FAULTS[name] for name in names if FAULTS[name].needs in {"", database}]


def _matching(part: str) -> list[str]:
    return [name for name in FAULTS if name == part or name.startswith(f"{part}:")]
