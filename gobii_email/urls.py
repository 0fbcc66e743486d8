"""The stand-alone service's addresses."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="console:overview")),
    path("admin/", admin.site.urls),
    path("console/", include("gobii_email.console.urls")),
    path("anymail/", include("gobii_email.webhooks")),
]
