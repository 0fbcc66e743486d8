"""Lanes: the turns in which one sender's mail goes out, and until when a lane waits.

A wait for a limit or a hold is the lane's, so that a backlog of any length costs one row. Which attempts a
turn takes is decided by the statements in `queue`; why a lane waits, by services.
"""

from django.db import models

from gobii_email.models.agents import PersistentAgentCommsEndpoint


class Lane(models.Model):
    """The queue of one sending endpoint. Without a row, or without `look_at`, it may be looked at any time.

    Only workers that had to wait and dispatchers that handed it out write here, never a submission: a row
    that many callers change would make them wait for each other's transactions.
    """

    endpoint = models.OneToOneField(
        PersistentAgentCommsEndpoint, primary_key=True, on_delete=models.CASCADE, related_name="lane"
    )
    look_at = models.DateTimeField(null=True)
    code = models.CharField(max_length=32, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        verbose_name = "lane"

    def __str__(self) -> str:
        return f"lane of {self.endpoint_id}"
