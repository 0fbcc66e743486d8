"""The stand-alone service's addresses."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from gobii_email.console.sign_in import AdminSignInForm

admin.site.login_form = AdminSignInForm
urlpatterns = [
    path("", RedirectView.as_view(pattern_name="console:overview")),
    path("admin/", admin.site.urls),
    path("console/", include("gobii_email.console.urls")),
    path("favicon.ico", RedirectView.as_view(url=static("console/icon.svg"))),
    path("", include("gobii_email.probes")),
    path("anymail/", include("gobii_email.webhooks")),
]
