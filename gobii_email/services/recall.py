"""What the turns of one worker found out about a lane a moment ago, so that each need not ask again.

Only a worker remembers, and only for a second: so long a pause, a new setting or the hold that another worker
made may go unnoticed. What a turn of this worker learned itself is forgotten at once.
"""

import time
from collections import OrderedDict

from gobii_email.models import OutboundMessageAttempt
from gobii_email.models.attempts import Origin
from gobii_email.services.record import release_connection

MOST = 10_000


class Origins:
    """Whose mail a lane carries. An answer holds for `seconds`: not at all, until a worker says how long."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._found: OrderedDict[str, tuple[float, Origin]] = OrderedDict()

    def of(self, lane: str, attempt_id: str) -> Origin | None:
        """The origin of the attempt, which waits in `lane`; with "" for the lane it is always read anew."""
        known = self._found.get(lane)
        if known is not None and time.monotonic() - known[0] < self.seconds:
            return known[1]
        origin = OutboundMessageAttempt.objects.origin(attempt_id)
        release_connection()
        if origin is not None and self.seconds and origin.endpoint_id is not None:
            self._found[str(origin.endpoint_id)] = (time.monotonic(), origin)
            while len(self._found) > MOST:
                self._found.popitem(last=False)
        return origin

    def forget(self, lane: str) -> None:
        self._found.pop(lane, None)


origins = Origins()
