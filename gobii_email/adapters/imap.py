"""Reads mailboxes over IMAP, on servers that belong to somebody else.

Puts policy, deadlines and connections together. What a server or network does comes out as Broken,
Declined or DialFailed; exceptions of the library do not.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta

from gobii_email.adapters.dialer import Deadline, DialFailed, DialPolicy
from gobii_email.adapters.imap_dialogue import Folder, ImapDeadlines, ImapDialogue
from gobii_email.adapters.imap_probe import ImapProbe
from gobii_email.adapters.imap_reading import ImapFolder, told
from gobii_email.adapters.imap_session import Declined, OnWait, unnoticed
from gobii_email.adapters.probe import OnLine, OnStep, unfollowed
from gobii_email.adapters.wire import Broken
from gobii_email.ports import ImapServer, Probe

__all__ = ["Folder", "ImapDeadlines", "ImapMailboxes"]

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.25, 3.0
"""How long to wait between two looks for a mail, at first and at most."""


class ImapMailboxes:
    """Opens mailboxes, and tests whether they can be opened."""

    def __init__(self, policy: DialPolicy, deadlines: ImapDeadlines = ImapDeadlines()) -> None:
        self._policy = policy
        self._deadlines = deadlines

    @contextmanager
    def open_folder(self, server: ImapServer, on_wait: OnWait = unnoticed) -> Iterator[ImapFolder]:
        """The folder of `server`, opened for reading, as ports.OpenFolder has it. Raises MailboxUnreadable.

        `on_wait` is called before each wait for the network and every few seconds of it; what it raises ends
        the visit.
        """
        opening = Deadline(self._deadlines.open)
        dialogue = ImapDialogue(server, self._policy, self._deadlines, opening, on_wait=on_wait, resumes=True)
        with closing(dialogue):
            with told(server):
                dialogue.open()
                folder = dialogue.examine(server.folder)
            dialogue.be_done_within(None)
            yield ImapFolder(dialogue, folder)

    @contextmanager
    def open_mailbox(self, server: ImapServer) -> Iterator[tuple[ImapDialogue, Folder]]:
        """The mailbox, signed in, with the folder of `server` opened for reading."""
        with closing(ImapDialogue(server, self._policy, self._deadlines)) as dialogue:
            dialogue.open()
            yield dialogue, dialogue.examine(server.folder)

    def await_mail(self, server: ImapServer, message_id: str, span: timedelta) -> int | None:
        """The UID of the mail of ours with this Message-ID in the folder of `server`, once it is there.

        None when it does not come within `span`, or the mailbox cannot be read. What the server says of
        new mail on an open connection is not to be relied on, so the folder is opened for every look.
        """
        dialogue = ImapDialogue(server, self._policy, self._deadlines, within := Deadline(span))
        pause = FIRST_LOOK_SECONDS
        with closing(dialogue), suppress(Broken, Declined, DialFailed, TimeoutError):
            dialogue.open()
            while True:
                dialogue.examine(server.folder)
                if found := dialogue.find(message_id):
                    return found[-1]
                time.sleep(min(pause, within.seconds_left()))
                pause = min(pause * 2, LONGEST_LOOK_SECONDS)
        return None

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
