"""`python -m tests.chaos`: the long form of the proof that nothing is lost and nothing is doubled.

Exit code 0 when the books balance, 1 when they do not. `--peers` runs the same server and faults against
other ways of sending mail from Django instead.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.faults import FAULTS, chosen
from tests.chaos.plant import Plant
from tests.chaos.run import Report, run


def table(document: dict[str, object]) -> str:
    """The facts of a report, a line each."""
    return "\n".join(f"{name.replace('_', ' '):>32}  {_shown(value)}" for name, value in document.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in sorted(value.items())) or "none"
    if isinstance(value, list):
        return ("\n" + " " * 34).join(str(one) for one in value) or "none"
    return str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--mails", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default="all", help=f"names or beginnings: {', '.join(FAULTS)}")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--per-second", type=float, default=12.0, help="mails submitted a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--break", dest="broken", default="", help="take a safety out: see breakage.py")
    parser.add_argument("--report", type=Path, help="where to write the report as JSON")
    parser.add_argument("--keep", type=Path, help="a directory for logs and journals that stays")
    parser.add_argument("--peers", action="store_true", help="compare with other ways of sending mail")
    parser.add_argument("--only", default="", help="with --peers: these alone, by their names in compare.py")
    return parser.parse_args()


def _run(given: argparse.Namespace, directory: Path) -> Report:
    env = {"CHAOS_BREAK": given.broken} if given.broken else {}
    with Plant(
        directory,
        database=given.database,
        workers=given.workers,
        threads=given.threads,
        beats=2,
        seed=given.seed,
        env=env,
    ) as plant:
        return run(
            plant,
            chosen(given.faults, given.database),
            mails=given.mails,
            seed=given.seed,
            per_second=given.per_second,
            say=lambda text: print(text, flush=True),
        )


def main() -> int:
    given = _arguments()
    directory = given.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return _compare(given, directory) if given.peers else _prove(given, directory)
    finally:
        if given.keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _compare(given: argparse.Namespace, directory: Path) -> int:
    from tests.chaos.peers.compare import compare

    return compare(given.mails, given.seed, given.report, given.only, directory)


def _prove(given: argparse.Namespace, directory: Path) -> int:
    report = _run(given, directory)
    document = {"seed": given.seed, "database": given.database, **report.document()}
    if given.report:
        given.report.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    return 1 if report.books.violations() else 0


if __name__ == "__main__":
    sys.exit(main())
