"""A value that must not be seen: opaque to print, pickle, JSON and debug pages.

Leaves encryption to `gobii_email.encryption`. Only a transport calls `reveal()`, at connect.
"""

import hmac
from collections.abc import Callable
from typing import NoReturn


class Secret:
    """Holds text; shows nothing of it. Two secrets compare in constant time."""

    __slots__ = ("_reveal",)

    def __init__(self, value: str) -> None:
        # A closure, so that no attribute of the object holds the text itself.
        self._reveal: Callable[[], str] = lambda: value

    def reveal(self) -> str:
        return self._reveal()

    def __bool__(self) -> bool:
        return bool(self._reveal())

    def __repr__(self) -> str:
        return "Secret(********)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_comparable(self), _comparable(other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")


def _comparable(secret: Secret) -> bytes:
    # An encoding error would carry the text in its arguments, so there must be none.
    return secret.reveal().encode("utf-8", "surrogatepass")
