"""The day as bars: where each rectangle of the chart lies. Colours and words are the style sheet's."""

from collections.abc import Sequence
from dataclasses import dataclass

from gobii_email.services.overview import Hour

WIDTH, HEIGHT, GAP = 720, 160, 4
_LAYERS = ("sent", "in_doubt", "waiting", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class Bar:
    """One rectangle; `kind` is its class."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars from the bottom up, and what the top of the scale stands for."""

    bars: Sequence[Bar]
    most: int
    width: int = WIDTH
    height: int = HEIGHT


def chart_of(hours: Sequence[Hour]) -> Chart:
    most = max((hour.total for hour in hours), default=0)
    step = WIDTH / max(len(hours), 1)
    bars = [bar for n, hour in enumerate(hours) for bar in _column(hour, n * step, step - GAP, max(most, 1))]
    return Chart(bars, most)


def _column(hour: Hour, x: float, width: float, most: int) -> list[Bar]:
    bars, y = [], float(HEIGHT)
    for kind in _LAYERS:
        count = getattr(hour, kind)
        if count:
            # A single failure among thousands must not vanish.
            height = max(count / most * HEIGHT, 2.0)
            y = max(y - height, 0.0)
            bars.append(
                Bar(kind.replace("_", "-"), round(x, 1), round(y, 1), round(width, 1), round(height, 1))
            )
    return bars
