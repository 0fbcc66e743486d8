"""The first page: how mail goes, and what needs somebody."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from gobii_email.console.access import page
from gobii_email.console.charts import chart_of
from gobii_email.services import overview
from gobii_email.services.browse import Whose


@page()
def show(request: HttpRequest, whose: Whose) -> HttpResponse:
    now = timezone.now()
    found = overview.overview(whose, now)
    context = {
        "now": now,
        "found": found,
        "oldest": now - found.oldest_waiting_since if found.oldest_waiting_since else None,
        "chart": chart_of(found.hours),
        "needs": overview.needs(whose, now),
        "objective": overview.OBJECTIVE,
    }
    return render(request, "console/overview.html", context)
