"""Celery's settings, each with its reason. Read by `celery -A worker`.

The row in the database is the queue; a task is a hint that may be lost, doubled or late. So nothing here
buys delivery guarantees from the broker: each such setting was measured to lose or double under faults.
"""

from kombu import Exchange, Queue

from gobii_email.adapters.celery_queue import broker_options
from gobii_email.conf import config
from gobii_email.ports import CONTROL_QUEUE, INBOUND_QUEUE, SEND_QUEUE

_settings = config()

broker_url = _settings.broker_url
broker_connection_retry_on_startup = True  # a worker may start before its broker
broker_connection_max_retries = None  # and outlives a long outage of it
broker_transport_options = broker_options(broker_url, patience=5)

result_backend = None  # the outcome is in the row
task_ignore_result = True
task_acks_late = False  # one lost broker connection would run everything in flight twice
task_reject_on_worker_lost = False  # the lease in the row recovers, not the broker
task_publish_retry = False  # the dispatcher is the retry
task_serializer = "json"
accept_content = ["json"]
event_serializer = "json"

task_queues = [
    # Each bound by its own name: with the default key, one queue's tasks would reach all of them.
    Queue(name, Exchange(name), routing_key=name)
    for name in (SEND_QUEUE, CONTROL_QUEUE, INBOUND_QUEUE)
]
task_default_queue = CONTROL_QUEUE
task_create_missing_queues = False  # a misspelt queue must fail, not fill unread
task_routes = {
    "gobii_email.deliver": {"queue": SEND_QUEUE},
    "gobii_email.poll_*": {"queue": INBOUND_QUEUE},
}

worker_pool = "threads"  # senders wait on sockets; threads keep database pools and signals simple
worker_prefetch_multiplier = 1  # spreads hints evenly over workers
worker_disable_prefetch = False  # on threads, True was measured to send a tenth as fast
worker_soft_shutdown_timeout = 0  # on threads a soft phase starts more work; SIGTERM alone is right
worker_cancel_long_running_tasks_on_connection_loss = False  # cancelling a send makes doubt
worker_eta_task_limit = 100  # nothing here uses ETAs; a stray one must not fill memory
worker_hijack_root_logger = False  # logs stay structured

worker_send_task_events = _settings.task_events  # Flower shows real sends; GOBII_TASK_EVENTS=0 opts out
task_send_sent_event = _settings.task_events
worker_enable_remote_control = True

enable_utc = True
timezone = "UTC"
beat_schedule: dict[str, object] = {
    # Housekeeping only. What comes too late, or twice because two beats run, does nothing.
    "tick": {
        "task": "gobii_email.note_tick",
        "schedule": 30.0,
        "options": {"queue": CONTROL_QUEUE, "expires": 30},
    },
    "prune": {
        "task": "gobii_email.prune",
        "schedule": 3600.0,  # seconds
        "options": {"queue": CONTROL_QUEUE, "expires": 3000},
    },
}
beat_scheduler = "worker.beat:Scheduler"  # touches GOBII_HEARTBEAT_FILE
beat_max_loop_interval = 30  # seconds, so that a beat which does not tick is soon found
beat_enable_remote_control = True  # answers `email_doctor` while it ticks
