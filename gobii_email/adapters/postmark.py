"""Postmark through Anymail."""

from gobii_email.domain.outcomes import Outcome
from gobii_email.domain.secret import Secret
from gobii_email.ports import Envelope, Progress


class PostmarkTransport:
    def __init__(self, *, token: Secret, api_url: str) -> None:
        self.token, self.api_url = token, api_url

    def send(self, envelope: Envelope, message: bytes, progress: Progress) -> Outcome:
        raise RuntimeError("being written")
