"""A limiter that always admits: the place where per-account limits will be asked."""

from gobii_email.ports import Wait


class OpenLimiter:
    """Admits everything (`ports.Limiter`)."""

    def admit(self, account_id: str, *, cost: int) -> Wait | None:
        return None

    def refund(self, account_id: str, *, cost: int) -> None:
        return None
