"""Lanes, limits and the indexes that turns need; indexes that made every change of a status dear go.

Limits of zero, which nothing applied before, become "not set"; queued attempts learn their message's end.
"""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection")
# Rows that change several times find room on their own page; serialised mail is not worth compressing.
POSTGRES = (
    "ALTER TABLE gobii_email_outboundmessageattempt SET (fillfactor = 70)",
    "ALTER TABLE gobii_email_outboundmessagerecipient SET (fillfactor = 80)",
    "ALTER TABLE gobii_email_persistentagentmessage SET (fillfactor = 80)",
    "ALTER TABLE gobii_email_frozenmessage ALTER COLUMN mime SET STORAGE EXTERNAL",
)


def fit_limits(apps, schema_editor):
    accounts = apps.get_model("gobii_email", "AgentEmailAccount").objects
    for name in LIMITS:
        accounts.filter(**{name: 0}).update(**{name: None})
        accounts.filter(**{f"{name}__gt": 1_000_000_000}).update(**{name: 1_000_000_000})


def copy_ends(apps, schema_editor):
    attempts = apps.get_model("gobii_email", "OutboundMessageAttempt").objects.filter(status="queued")
    messages = apps.get_model("gobii_email", "PersistentAgentMessage").objects
    end = messages.filter(pk=models.OuterRef("message_id")).values("expires_at")[:1]
    attempts.update(expires_at=models.Subquery(end))


def tune(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for statement in POSTGRES:
            schema_editor.execute(statement)


class Migration(migrations.Migration):

    dependencies = [
        ('gobii_email', '0002_account_endpoint_guard'),
    ]

    operations = [
        migrations.CreateModel(
            name='Lane',
            fields=[
                ('endpoint', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='lane', serialize=False, to='gobii_email.persistentagentcommsendpoint')),
                ('look_at', models.DateTimeField(null=True)),
                ('code', models.CharField(blank=True, max_length=32)),
                ('reason', models.TextField(blank=True)),
            ],
            options={
                'verbose_name': 'lane',
            },
        ),
        migrations.CreateModel(
            name='SendingLimit',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('host', 'Server (host:port)'), ('domain', 'Domain of the senders')], max_length=8)),
                ('name', models.CharField(help_text='`smtp.example.com:587`, or `example.com`', max_length=264)),
                ('per_minute', models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)])),
                ('per_hour', models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)])),
                ('per_day', models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)])),
                ('max_connections', models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)])),
            ],
            options={
                'verbose_name': 'sending limit',
                'ordering': ['kind', 'name'],
            },
        ),
        migrations.RemoveIndex(
            model_name='outboundmessageattempt',
            name='attempt_due_idx',
        ),
        migrations.RemoveIndex(
            model_name='outboundmessageattempt',
            name='attempt_lane_idx',
        ),
        migrations.RemoveIndex(
            model_name='outboundmessageattempt',
            name='attempt_status_idx',
        ),
        migrations.RemoveIndex(
            model_name='persistentagentmessage',
            name='message_status_idx',
        ),
        migrations.AddField(
            model_name='agentemailaccount',
            name='learned_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='agentemailaccount',
            name='learned_connections',
            field=models.PositiveIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='agentemailaccount',
            name='learned_per_minute',
            field=models.PositiveIntegerField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='agentemailaccount',
            name='learned_reason',
            field=models.TextField(blank=True, editable=False),
        ),
        migrations.AddField(
            model_name='outboundmessageattempt',
            name='expires_at',
            field=models.DateTimeField(help_text="as its message's, for finding what is over", null=True),
        ),
        migrations.AddField(
            model_name='outboundmessageattempt',
            name='priority',
            field=models.PositiveSmallIntegerField(choices=[(0, 'interactive'), (1, 'bulk')], default=0),
        ),
        migrations.AddField(
            model_name='outboundmessageattempt',
            name='releases',
            field=models.PositiveSmallIntegerField(default=0, help_text='how often a lost worker gave it back unsent'),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='max_connections',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)]),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='messages_per_connection',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)]),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='per_day',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)]),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='per_hour',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)]),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='per_minute',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000000000)]),
        ),
        migrations.AlterField(
            model_name='agentemailaccount',
            name='pool_ttl',
            field=models.PositiveIntegerField(blank=True, help_text='seconds', null=True, validators=[django.core.validators.MaxValueValidator(3600)]),
        ),
        migrations.AlterField(
            model_name='outboundmessageattempt',
            name='from_endpoint',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='attempts', to='gobii_email.persistentagentcommsendpoint'),
        ),
        migrations.AlterField(
            model_name='outboundmessageevent',
            name='message',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='events', to='gobii_email.persistentagentmessage'),
        ),
        migrations.AlterField(
            model_name='outboundmessagerecipient',
            name='message',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='recipients', to='gobii_email.persistentagentmessage'),
        ),
        migrations.AlterField(
            model_name='persistentagentmessage',
            name='rfc_message_id',
            field=models.CharField(blank=True, max_length=320),
        ),
        migrations.AddIndex(
            model_name='outboundmessageattempt',
            index=models.Index(condition=models.Q(('status__in', ['sending', 'in_doubt'])), fields=['due_at'], name='attempt_look_idx'),
        ),
        migrations.AddIndex(
            model_name='outboundmessageattempt',
            index=models.Index(condition=models.Q(('status', 'queued')), fields=['from_endpoint', 'priority', 'due_at'], name='attempt_turn_idx'),
        ),
        migrations.AddIndex(
            model_name='outboundmessageattempt',
            index=models.Index(condition=models.Q(('status', 'queued')), fields=['expires_at'], name='attempt_expiry_idx'),
        ),
        migrations.AddIndex(
            model_name='outboundmessageattempt',
            index=models.Index(fields=['from_endpoint', 'sent_at'], name='attempt_sent_idx'),
        ),
        migrations.AddIndex(
            model_name='persistentagentmessage',
            index=models.Index(fields=['rfc_message_id'], name='message_rfc_id_idx'),
        ),
        migrations.RunPython(fit_limits, migrations.RunPython.noop),
        migrations.RunPython(copy_ends, migrations.RunPython.noop),
        migrations.RunPython(tune, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name='agentemailaccount',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('per_minute__isnull', True), models.Q(('per_minute__gte', 1), ('per_minute__lte', 1000000000)), _connector='OR'), models.Q(('per_hour__isnull', True), models.Q(('per_hour__gte', 1), ('per_hour__lte', 1000000000)), _connector='OR'), models.Q(('per_day__isnull', True), models.Q(('per_day__gte', 1), ('per_day__lte', 1000000000)), _connector='OR'), models.Q(('max_connections__isnull', True), models.Q(('max_connections__gte', 1), ('max_connections__lte', 1000000000)), _connector='OR'), models.Q(('messages_per_connection__isnull', True), models.Q(('messages_per_connection__gte', 1), ('messages_per_connection__lte', 1000000000)), _connector='OR')), name='account_limits'),
        ),
        migrations.AddConstraint(
            model_name='sendinglimit',
            constraint=models.UniqueConstraint(fields=('kind', 'name'), name='sending_limit_once'),
        ),
        migrations.AddConstraint(
            model_name='sendinglimit',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('per_minute__isnull', True), models.Q(('per_minute__gte', 1), ('per_minute__lte', 1000000000)), _connector='OR'), models.Q(('per_hour__isnull', True), models.Q(('per_hour__gte', 1), ('per_hour__lte', 1000000000)), _connector='OR'), models.Q(('per_day__isnull', True), models.Q(('per_day__gte', 1), ('per_day__lte', 1000000000)), _connector='OR'), models.Q(('max_connections__isnull', True), models.Q(('max_connections__gte', 1), ('max_connections__lte', 1000000000)), _connector='OR')), name='sending_limit_bounds'),
        ),
    ]
