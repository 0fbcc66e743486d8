"""Who is included while the feature is being rolled out.

Pure: a percentage by stable hash, or a list of agents and addresses. The flag that switches the whole
feature is read elsewhere (conf).
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rollout:
    """`percent` of all agents (0–100), or the agents and addresses in `names`, never both."""

    percent: int = 100
    names: frozenset[str] | None = None

    @property
    def text(self) -> str:
        """As it is written in the setting."""
        return f"{self.percent}%" if self.names is None else ",".join(sorted(self.names))

    def includes(self, agent_id: str, address: str) -> bool:
        """Stable over time: an agent once included stays so while the percentage does not fall."""
        if self.names is not None:
            return agent_id.lower() in self.names or address.lower() in self.names
        digest = hashlib.sha256(agent_id.lower().encode()).digest()
        return int.from_bytes(digest[:4]) % 100 < self.percent


def parse_rollout(text: str) -> Rollout:
    """`all`, `25%`, or a comma-separated list of agent ids and addresses.

    Raises ValueError with a sentence when a percentage is not a number from 0 to 100.
    """
    text = text.strip()
    if text.lower() in {"", "all"}:
        return Rollout()
    number = text.removesuffix("%").strip()
    if text.endswith("%") or number.isdigit():
        if not number.isdigit() or int(number) > 100:
            raise ValueError(f"{text!r} is not a percentage from 0 to 100")
        return Rollout(percent=int(number))
    return Rollout(names=frozenset(name.strip().lower() for name in text.split(",") if name.strip()))
