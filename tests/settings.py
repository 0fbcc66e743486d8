"""The service's own settings, with directories of this run's own, so that two runs do not meet."""

import os
import tempfile

_var = tempfile.TemporaryDirectory(prefix="gobii-email-tests-")
os.environ["GOBII_VAR"] = _var.name

os.environ.setdefault("BYO_EMAIL_ALLOWED_NETWORKS", "127.0.0.0/8,::1/128")
os.environ.setdefault("GOBII_TEST_BLOCKED_AFTER", "300ms")
os.environ.setdefault("GOBII_TESTS_PER_MINUTE", "1000")
os.environ.setdefault("GOBII_TESTS_PER_HOUR", "1000")
os.environ.setdefault("GOBII_ENCRYPTION_KEY", "test:" + "A" * 43 + "=")
os.environ.setdefault("SECRET_KEY", "only for tests")
if "TEST_DATABASE_URL" in os.environ:
    os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]

from gobii_email.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
