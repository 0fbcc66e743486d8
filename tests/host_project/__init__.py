"""Somebody else's Django project, which plugs the app in and knows nothing of its settings module."""

from tests.host_project.celery import app

__all__ = ["app"]
