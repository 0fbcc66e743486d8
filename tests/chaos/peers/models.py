"""The row of the plainest way: a letter that is sent in the transaction that says so."""

from django.db import models


class Letter(models.Model):
    subject = models.CharField(max_length=64)
    body = models.TextField()
    status = models.CharField(max_length=8, default="queued")

    class Meta:
        app_label = "peers"
