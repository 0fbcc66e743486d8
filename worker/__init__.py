"""The Celery app: tasks that call one service each."""

from worker.celery import app

__all__ = ["app"]
