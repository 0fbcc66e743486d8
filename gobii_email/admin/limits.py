"""Limits above the accounts: of everybody who uses one server, or writes from one domain."""

from django.contrib import admin

from gobii_email.admin.pages import OwnPages
from gobii_email.models import SendingLimit


@admin.register(SendingLimit)
class SendingLimitAdmin(OwnPages):
    """Workers go by a change within ten seconds."""

    list_display = ["name", "kind", "per_minute", "per_hour", "per_day", "max_connections"]
    list_filter = ["kind"]
    search_fields = ["name"]
