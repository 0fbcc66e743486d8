"""The console's addresses, below wherever the project puts them; names begin with `console:`."""

from django.contrib.auth.views import LogoutView
from django.urls import path, reverse_lazy
from django.views.decorators.cache import never_cache

from gobii_email.console import accounts, connecting, mail, overview
from gobii_email.console.sign_in import SignIn

app_name = "console"

urlpatterns = [
    path("", overview.show, name="overview"),
    path("login/", SignIn.as_view(), name="login"),
    path("logout/", never_cache(LogoutView.as_view(next_page=reverse_lazy("console:login"))), name="logout"),
    path("messages/", mail.messages, name="messages"),
    path("messages/<uuid:pk>/", mail.message, name="message"),
    path("messages/<uuid:pk>/html/", mail.html, name="message_html"),
    path("messages/<uuid:pk>/do/<slug:name>/", mail.do, name="message_do"),
    path("simulation/", mail.simulation, name="simulation"),
    path("accounts/", accounts.accounts, name="accounts"),
    path("accounts/add/", connecting.add, name="add"),
    path("accounts/add/found/", connecting.found, name="add_found"),
    path("accounts/add/sign-in/", connecting.sign_in_new, name="add_sign_in"),
    path("oauth/callback/", connecting.callback, name="oauth_callback"),
    path("accounts/<uuid:pk>/", accounts.account, name="account"),
    path("accounts/<uuid:pk>/settings/", accounts.save, name="account_save"),
    path("accounts/<uuid:pk>/pause/", accounts.pause, name="account_pause"),
    path("accounts/<uuid:pk>/resume/", accounts.resume, name="account_resume"),
    path("accounts/<uuid:pk>/switch/", accounts.switch, name="account_switch"),
    path("accounts/<uuid:pk>/test/", accounts.test, name="account_test"),
    path("accounts/<uuid:pk>/poll/", accounts.poll, name="account_poll"),
    path("accounts/<uuid:pk>/lift/", accounts.lift, name="account_lift"),
    path("accounts/<uuid:pk>/connect/", accounts.connect, name="account_connect"),
    path("accounts/<uuid:pk>/disconnect/", accounts.disconnect, name="account_disconnect"),
    path("accounts/<uuid:pk>/delete/", accounts.delete, name="account_delete"),
]
