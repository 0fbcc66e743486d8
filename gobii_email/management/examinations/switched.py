"""What operators have switched: suspensions in force, and who takes part in own mailboxes."""

from gobii_email.management.examinations.row import OK, WARN, Row, named
from gobii_email.services.switches import switches, told


def switched() -> Row:
    """A warning while anything is suspended, so that nobody looks for its cause elsewhere."""
    found = switches()
    flag = f"served for {found.rollout.text}" if found.is_byo_email_enabled else "switched off"
    text = f"own mailboxes are {flag}"
    if found.suspensions:
        text = f"{text}; {len(found.suspensions)} in force: {named(list(map(told, found.suspensions)))}"
        hint = "See `email_suspend --list`; `email_suspend --cancel NUMBER` lets it go on."
        return Row("switches", WARN, text, hint)
    return Row("switches", OK, f"{text}; nothing is suspended")
