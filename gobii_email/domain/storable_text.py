"""Text as every database keeps it."""

import re


def storable(text: str) -> str:
    """`text` with what no database keeps, NUL and half characters, replaced by U+FFFD."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)
