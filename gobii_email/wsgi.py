"""The web process."""

import os

from django.core.wsgi import get_wsgi_application

from gobii_email.tracing import start_exporting

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gobii_email.settings")
application = get_wsgi_application()
start_exporting()
