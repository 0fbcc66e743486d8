"""Reading what was counted, for tests: a directory of their own, and the samples in it."""

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gobii_email import metrics
from gobii_email.services import expose


class Counted:
    """The counts of a directory that nobody else counts in."""

    def __init__(self, settings: Any, directory: Path) -> None:
        settings.GOBII_METRICS_DIR = str(directory)
        self.begin_anew()

    def begin_anew(self) -> None:
        metrics.counts.begin_anew()
        expose.forget()

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples `name` whose labels are as given."""
        samples = [one for family in metrics.counts.collect() for one in family.samples if one.name == name]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())

    def shown(self) -> dict[str, dict[str, float]]:
        """Everything as `/metrics` shows it: by name, the values by their labels in alphabetical order."""
        expose.forget()
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(expose.exposition().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[",".join(sample.labels.values())] = sample.value
        return found
