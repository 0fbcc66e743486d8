"""Who is opened next: by time, with few places for each server."""

from gobii_email.services.line_up import PLACES, PLACES_OF_A_HOST, Line


def whose_turn(line: Line, now: float = 0.0) -> list[str]:
    found = []
    while (key := line.next(now)) is not None:
        found.append(key)
    return found


def test_who_is_due_comes_first_and_nobody_before_its_time() -> None:
    line = Line()
    line.join("late", "a", 5.0)
    line.join("soon", "b", 2.0)
    assert whose_turn(line, 1.0) == []
    assert whose_turn(line, 3.0) == ["soon"]
    assert whose_turn(line, 9.0) == ["late"]
    assert len(line) == 0


def test_who_joins_again_waits_as_said_last_and_who_left_waits_no_more() -> None:
    line = Line()
    line.join("again", "a", 1.0)
    line.join("again", "a", 5.0)
    line.join("gone", "a", 1.0)
    line.leave("gone")
    assert whose_turn(line, 2.0) == [] and len(line) == 1
    assert whose_turn(line, 5.0) == ["again"]


def test_a_server_that_keeps_all_waiting_holds_its_own_places_alone() -> None:
    line = Line()
    for number in range(100):
        line.join(f"slow{number:02}", "tarpit", float(number))
    line.join("quick", "good", 1000.0)
    first = whose_turn(line, 2000.0)
    assert first == [*(f"slow{number:02}" for number in range(PLACES_OF_A_HOST)), "quick"]
    line.leave("slow08")
    line.done("tarpit")
    assert whose_turn(line, 2000.0) == ["slow09"]
    line.done("good")
    assert whose_turn(line, 2000.0) == []
    for expected in range(10, 100):
        line.done("tarpit")
        assert whose_turn(line, 2000.0) == [f"slow{expected:02}"]
    assert len(line) == 0


def test_no_more_than_all_places_are_given() -> None:
    line = Line()
    for number in range(PLACES + 3):
        line.join(str(number), f"host{number}", 0.0)
    assert len(whose_turn(line)) == PLACES
    line.done("host0")
    assert len(whose_turn(line)) == 1
