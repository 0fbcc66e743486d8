"""`./bin/demo`: starts everything, sends mail through it, says whether that went well.

Exit code 0 when every mail ended as it should, 1 when not or when something could not be started.
"""

import argparse
import logging
import os
import sys
import time

from demo.interruption import Interrupted, Interruption
from demo.screen import Screen
from demo.stage import MAIL_USER, DemoFailed, Stage
from gobii_email.testing.processes import ServerUnavailable


def main() -> int:
    options = _options()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # aiosmtpd complains of itself at every login.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    interruption, screen = Interruption(), Screen()
    try:
        return run(options, interruption, screen)
    except Interrupted as ended:
        screen.line(f"\nEnded: {ended}.")
        return 128 + ended.signal
    except (DemoFailed, ServerUnavailable) as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./bin/demo",
        description="Runs the whole service on this machine, sends real mail to a server of its own, and"
        " prints what happens to each. Uses REDIS_URL and DATABASE_URL if they are set; that database"
        " should be the demonstration's own.",
    )
    parser.add_argument("--once", action="store_true", help="end after the summary; exit 0 if all went well")
    parser.add_argument("--flower", action="store_true", help="start Flower too")
    return parser.parse_args()


def run(options: argparse.Namespace, interruption: Interruption, screen: Screen) -> int:
    """Starts the stage, plays, and takes everything down again, whatever happens."""
    started = time.monotonic()
    stage = Stage(interruption)
    is_right, keeps_logs = False, True
    try:
        _start(stage, options, screen)
        is_right = _play(stage, screen, started)
        keeps_logs = not is_right
        if not options.once:
            _stay_up(stage, screen)
        return 0 if is_right else 1
    except Interrupted:
        keeps_logs = False
        raise
    except RuntimeError as problem:
        raise _told(problem, stage) from None
    finally:
        interruption.is_over()
        stage.stop(keeps_logs=keeps_logs)


def _start(stage: Stage, options: argparse.Namespace, screen: Screen) -> None:
    screen.line("gobii_email: everything here is real, and stays on this machine.", "bold")
    screen.line("Starting broker, database, submission server, dispatcher, web and workers …")
    stage.start(has_flower=options.flower)
    stage.enter()
    screen.line()
    screen.fact("broker", stage.broker)
    screen.fact("server", f"127.0.0.1:{stage.server.port}, STARTTLS and AUTH, a throw-away CA")
    screen.fact(
        "processes", ", ".join(f"{process.name} ({process.pid})" for process in stage.stack.processes)
    )
    screen.fact("files", f"{stage.shown_directory}/")


def _play(stage: Stage, screen: Screen, started: float) -> bool:
    from demo import show

    cast = show.connect_mailbox(stage, screen)
    results = show.play_all(stage, cast, screen)
    is_right = show.summarise(results, screen)
    wrong = sum(bool(result.problems) for result in results)
    screen.line()
    if is_right:
        seconds = time.monotonic() - started
        screen.line(f"All {len(results)} mails ended as they should, in {seconds:.0f} seconds.", "green")
    else:
        screen.line(f"{wrong} of {len(results)} mails did not end as they should.", "red")
        screen.line(f"The logs are in {stage.shown_directory}.", "red")
    return is_right


def _stay_up(stage: Stage, screen: Screen) -> None:
    """Until somebody ends it; says so when a process ends by itself."""
    screen.heading("Open while this runs (Ctrl-C ends it)")
    for door in stage.open_doors():
        screen.fact(door.name, door.url)
        screen.fact("", f"user {door.user}, password {door.password}")
    screen.fact("mailbox", f"to add: any address, {stage.mail_server}, STARTTLS,")
    screen.fact("", f"user {MAIL_USER}, password {stage.mail_password}")
    told: set[str] = set()
    try:
        while True:
            for ended in stage.ended():
                if ended.name not in told:
                    told.add(ended.name)
                    screen.note(f"{ended.name} has ended by itself; its log is {ended.log}")
            time.sleep(0.5)
    except Interrupted:
        screen.line("\nStopping everything …")


def _told(problem: RuntimeError, stage: Stage) -> Exception:
    """A process that did not start, in one sentence; anything else as it is."""
    if "never said" not in str(problem):
        return problem
    name = str(problem).split(" ", 1)[0]
    return DemoFailed(f"{name} did not start; its log says why: {stage.shown_directory}/{name}.log")


if __name__ == "__main__":
    sys.exit(main())
