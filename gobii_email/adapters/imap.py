"""Reads mailboxes over IMAP, on servers that belong to somebody else.

Puts policy, deadlines and connections together. What a server or network does comes out as Broken,
Declined or DialFailed; exceptions of the library do not.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.imap_dialogue import Folder, ImapDeadlines, ImapDialogue
from gobii_email.adapters.imap_probe import ImapProbe
from gobii_email.adapters.probe import OnLine, OnStep, unfollowed
from gobii_email.ports import ImapServer, Probe

__all__ = ["Folder", "ImapDeadlines", "ImapMailboxes"]


class ImapMailboxes:
    """Opens mailboxes, and tests whether they can be opened."""

    def __init__(self, policy: DialPolicy, deadlines: ImapDeadlines = ImapDeadlines()) -> None:
        self._policy = policy
        self._deadlines = deadlines

    @contextmanager
    def open_mailbox(self, server: ImapServer) -> Iterator[tuple[ImapDialogue, Folder]]:
        """The mailbox, signed in, with the folder of `server` opened for reading."""
        with closing(ImapDialogue(server, self._policy, self._deadlines)) as dialogue:
            dialogue.open()
            yield dialogue, dialogue.examine(server.folder)

    def probe(
        self,
        server: ImapServer,
        *,
        until: str = "",
        on_step: OnStep = unfollowed,
        on_line: OnLine | None = None,
    ) -> Probe:
        """Tests everything up to the open folder; stops after the step `until`.

        `on_line` hears the dialogue, redacted. Bounded by `ImapDeadlines.probe` as a whole.
        """
        return ImapProbe(server, self._policy, self._deadlines, on_line).walk(until, on_step)
