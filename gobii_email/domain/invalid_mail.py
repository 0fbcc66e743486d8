"""What is wrong with a mail somebody wants to send, said so that they can put it right.

The one exception of validation and composition. It never quotes secrets, and quotes input only
with control characters made visible.
"""


class InvalidMail(ValueError):
    """`field` names the part of the mail, `reason` says what is wrong, `remedy` what to do instead.

    `str()` is the sentence of all three: "subject: it is empty. Give it a few words."
    """

    def __init__(self, field: str, reason: str, remedy: str = "") -> None:
        super().__init__(field, reason, remedy)  # the arguments as they are, so that it can be pickled
        self.field = field
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(_sentence(part) for part in (f"{self.field}: {self.reason}", self.remedy) if part)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."
