"""Agents and whom they may write to."""

from django.contrib import admin

from gobii_email.admin.pages import OwnPages
from gobii_email.models import CommsAllowlistEntry, PersistentAgent


class AllowlistInline(admin.TabularInline):
    model = CommsAllowlistEntry
    fields = ["channel", "address", "is_active", "allow_outbound", "allow_inbound"]
    extra = 0


@admin.register(PersistentAgent)
class AgentAdmin(OwnPages):
    list_display = ["name", "user", "whitelist_policy", "created_at"]
    list_filter = ["whitelist_policy"]
    list_select_related = ["user"]
    search_fields = ["name", "comms_endpoints__address"]
    autocomplete_fields = ["user"]
    readonly_fields = ["created_at", "updated_at"]
    inlines = [AllowlistInline]
