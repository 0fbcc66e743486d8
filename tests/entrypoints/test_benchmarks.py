"""The benchmarks still run, and count right: tiny runs on real processes, and no word about speed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import admin_lists, drain, fairness, limits, memory, polling, report, scale, tracing
from benchmarks.rig import Rig
from benchmarks.sink import Sink, log_in, pipelined, trusting

TINY = drain.Load(mails=24, accounts=2, threads=4, seconds=60)
MIME = b"Message-ID: <%d@client.example>\r\nSubject: s\r\n\r\nbody\r\n"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    with Sink(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "rig" in request.fixturenames:
        request.getfixturevalue("rig").stop()


def test_the_sink_counts_messages_doubles_commands_and_round_trips(sink: Sink) -> None:
    client = log_in(sink.port, trusting(sink.authority.ca_file), "agent@sender.example")
    before = sink.summary()["turns"]
    for number in (1, 2, 2):
        pipelined(client, "agent@sender.example", "to@rcpt.example", MIME % number)
    found = sink.summary()
    assert (found["accepted"], found["distinct"], found["doubled"], found["connections"]) == (3, 2, 1, 1)
    assert (found["commands"]["DATA"], found["turns"] - before) == (3, 6)
    assert sink.when("1@client.example") == sink.accepted()[0][0]
    assert sink.accepted(2)[0][1:4] == ["2@client.example", "agent@sender.example", "agent@sender.example"]


def test_the_sink_takes_no_mail_without_a_login(sink: Sink) -> None:
    client = log_in(sink.port, trusting(sink.authority.ca_file), "agent@sender.example")
    client.docmd("QUIT")
    with pytest.raises(Exception, match="535"):
        log_in_with(sink, "wrong")
    assert sink.count() == 0


def log_in_with(sink: Sink, password: str) -> None:
    import smtplib

    with smtplib.SMTP("localhost", sink.port) as client:
        client.starttls(context=trusting(sink.authority.ca_file))
        assert client.docmd("MAIL FROM:<agent@sender.example>")[0] == 530
        client.login("agent@sender.example", password)


@pytest.mark.parametrize(
    ("moments", "most"),
    [([], 0), ([0.0], 1), ([0, 1, 59.9], 3), ([0, 60.0], 1), ([0, 30, 59, 61, 89, 90], 4)],
)
def test_the_fullest_minute_is_half_open(moments: list[float], most: int) -> None:
    assert limits.fullest(moments) == most


def test_the_share_used_is_of_whole_minutes() -> None:
    assert limits.share_used([0, 1, 60, 61, 121], 2) == 1.0
    assert limits.share_used([0, 30, 59], 6) == 0.5


def test_statements_are_counted_by_process_and_shape() -> None:
    log = (
        '[worker 7] LOG:  statement: SELECT "gobii_email_a"."x" FROM "gobii_email_a" WHERE id = \'it\'\'s\'\n'
        "[worker 8] LOG:  statement: SELECT 1 FROM gobii_email_a\n\tWHERE id = 'b'\n"
        "[dispatcher 9] LOG:  statement: COMMIT\n"
    )
    shape = "SELECT … FROM a WHERE id = ?"
    assert drain.statements(log) == {("worker", shape): 2, ("dispatcher", "COMMIT"): 1}


def test_a_section_of_the_page_is_replaced_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\n<!-- y: begin -->\nkept\n<!-- y: end -->\n")
    report.write(page, "x", "new")
    assert page.read_text().replace("\n", " ").split("-->")[1] == " new <!-- x: end "
    assert "kept" in page.read_text()
    with pytest.raises(ValueError, match="no marks"):
        report.write(page, "z", "new")


def test_the_page_has_a_place_for_every_benchmark(tmp_path: Path) -> None:
    for name in report.SECTIONS:
        page = report.ELSEWHERE.get(name, report.PAGE)
        copy = tmp_path / page.name
        copy.write_text(page.read_text())
        report.write(copy, name, "found")


@pytest.mark.parametrize("row", ["reuse", "single2"])
def test_a_drained_queue_is_complete(rig: Rig, row: str) -> None:
    found = drain.drain(rig, row, TINY)
    assert (found.mails, found.missing, found.doubled, found.unsettled) == (24, 0, 0, 0)
    assert found.per_second > 0
    text = drain.as_text({"rows": {row: [drain.asdict(found)]}})
    assert drain.ROWS[row].title in text


def test_statements_of_a_run_are_found_in_the_log(rig: Rig) -> None:
    assert "UPDATE" in drain.count_statements(rig, "reuse", TINY)


def test_single_mails_arrive_and_are_timed(rig: Rig) -> None:
    what = fairness.Disturbance("a few mails", mails=60, accounts=1)
    found = fairness.measure(what, mails=2, threads=4, seconds=60, head_start=0, rig=rig)
    assert (found.count, found.late) == (2, 0)


def test_limits_are_looked_at_for_each_rate(rig: Rig) -> None:
    rig.sink.reset()
    found = limits.measure(rig, [60, 600], workers=1, threads=4, seconds=4, flush_at=2)
    assert [kept.per_minute for kept in found] == [60, 600]
    assert all(kept.accepted and kept.fullest == kept.accepted for kept in found)


def test_memory_is_read_while_mails_go_out(rig: Rig) -> None:
    rig.sink.reset()
    found = memory.over_many(rig, 30, threads=4, seconds=60)
    assert found["mails"] == 30
    assert found["resident_mb"]["100"] > 10
    large = memory.over_one_large(rig, 1, threads=4)
    assert 0.9 < large["wire_mb"] < 1.1


def test_a_multiplied_queue_is_sent_and_timed() -> None:
    found = scale.measure(60, accounts=2, mails=20, threads=4, seconds=60)
    assert found["accepted"] >= 20
    assert any("worker" in name for name in found["statements"])
    assert scale.as_text({"small": found, "large": found}, plans=True)


def test_a_backlog_in_one_mailbox_is_taken_in_and_timed() -> None:
    found = polling.backlog(8, threads=2, seconds=60)
    assert found.mails == 8 and found.per_second > 0 and found.peak_mb >= found.before_mb > 10
    polls = polling.Polls(1000, 16, 50.0, 9.0)
    assert "take 1.67 such workers" in polling.polls_line(polls)


def test_spans_and_metrics_are_timed() -> None:
    found = tracing.measure(200, rounds=1)
    assert set(found) == set(tracing.ROWS)
    assert all(figure > 0 for figures in found.values() for figure in figures)


def test_every_list_of_the_admin_is_opened_with_few_statements() -> None:
    found = admin_lists.measured(1_000, rounds=1)
    assert set(found["pages"]) == set(admin_lists.PAGES)
    assert all(1 < row["statements"] <= admin_lists.MOST_STATEMENTS for row in found["pages"].values())
    assert all(0 < row["milliseconds"] <= row["most"] for row in found["pages"].values())
