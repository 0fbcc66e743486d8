"""Django settings of the stand-alone service. Host projects use their own and read none of this."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from gobii_email.conf import flag, number, read_text

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = Path(read_text("GOBII_VAR", str(BASE_DIR / "var")))

DEBUG = flag(read_text("DEBUG", "false"))
PUBLIC_URL = read_text("PUBLIC_URL", "http://127.0.0.1:8000")
ALLOWED_HOSTS = [host for host in read_text("ALLOWED_HOSTS", "127.0.0.1,localhost").split(",") if host]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if PUBLIC_URL.startswith("https://") else []


def secret_key() -> str:
    """SECRET_KEY, or one made once and kept in `var/`, readable by its owner alone."""
    given = read_text("SECRET_KEY")
    if given:
        return given
    from django.core.management.utils import get_random_secret_key

    path = VAR / "secret_key"
    if not path.exists():
        VAR.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(get_random_secret_key())
    return path.read_text().strip()


SECRET_KEY = secret_key()


def _prepared_after(text: str) -> int | None:
    """Uses of a statement after which a connection keeps its plan; "none" for a pooler that keeps none."""
    return None if text.lower() == "none" else number(text)


def database(url: str, *, pool_size: int) -> dict[str, object]:
    """The Django form of a database address: `sqlite:///path` or `postgres://user:password@host:port/name`."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        path = (
            Path(unquote(parts.path.removeprefix("/")))
            if parts.path.count("/") == 1
            else Path(parts.path[1:])
        )
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": path,
            "OPTIONS": {
                # Without IMMEDIATE a read that turns into a write fails at once when another writes.
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
            },
            "TEST": {"NAME": str(VAR / "test.sqlite3")},
        }
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured(f"DATABASE_URL: {parts.scheme!r} is neither sqlite nor postgres")
    options: dict[str, object] = dict(parse_qsl(parts.query))
    host = options.pop("host", None) or unquote(parts.hostname or "")
    options["prepare_threshold"] = _prepared_after(str(options.get("prepare_threshold", 5)))
    if pool_size:
        options["pool"] = {"min_size": 1, "max_size": pool_size, "timeout": 10}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.removeprefix("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options,
    }


VAR.mkdir(mode=0o700, parents=True, exist_ok=True)
(VAR / "static").mkdir(exist_ok=True)
DATABASES = {
    "default": database(
        read_text("DATABASE_URL", f"sqlite:///{VAR / 'gobii_email.sqlite3'}"),
        pool_size=number(read_text("GOBII_DB_POOL", "0")),
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "anymail",
    "django_htmx",
    "gobii_email",
]
MIDDLEWARE = [
    "gobii_email.probes.Probes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "gobii_email.console.csp.ContentSecurityPolicy",
]
ROOT_URLCONF = "gobii_email.urls"
WSGI_APPLICATION = "gobii_email.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = VAR / "static"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
MEDIA_ROOT = VAR / "media"
GOBII_METRICS_DIR = read_text("GOBII_METRICS_DIR") or str(VAR / "metrics")

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_AGE = int(timedelta(hours=12).total_seconds())
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if PUBLIC_URL.startswith("https://") else None
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_SSL_REDIRECT = PUBLIC_URL.startswith("https://")
SECURE_HSTS_SECONDS = int(timedelta(days=30).total_seconds()) if PUBLIC_URL.startswith("https://") else 0
# Whether other names of the domain do so as well, and browsers' lists, is for the domain's owner to say.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "gobii_email.logs.JsonFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"gobii_email": {"handlers": ["console"], "level": read_text("LOG_LEVEL", "INFO")}},
}
