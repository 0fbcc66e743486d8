"""Guards in the database: which endpoints may have an account, and that events are never rewritten.

On SQLite they are put up after all migrations instead, because it cannot rebuild a table that a trigger names.
"""

from django.db import migrations

from gobii_email.models import guards


def put_up(apps, schema_editor):
    if schema_editor.connection.vendor != "sqlite":
        guards.put_up(schema_editor.connection)


def take_down(apps, schema_editor):
    guards.take_down(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("gobii_email", "0001_initial")]

    operations = [migrations.RunPython(put_up, take_down)]
