"""How services over HTTPS are spoken to: no redirect is followed, and OpenSSL's setting says who is trusted.

A redirect would carry tokens to another host. `SSL_CERT_FILE` names the trusted authorities for everything
here, so what requests reads besides (`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`) must not win over it.
"""

import os
from typing import Any

import requests


class HttpsSession(requests.Session):
    """Of requests; also before another session among the bases of a class."""

    def send(self, request: requests.PreparedRequest, **named: Any) -> requests.Response:
        named["allow_redirects"] = False
        if anchors := os.environ.get("SSL_CERT_FILE"):
            named["verify"] = anchors
        return super().send(request, **named)
