"""Turn what an agent wrote into the two bodies of a mail, as a reader will see them.

The HTML fragment goes into the template `emails/persistent_agent_email.html`, which a host project
may override, and its style sheet into style attributes, because many mail clients drop the former.
Nothing is fetched from anywhere.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from css_inline import CSSInliner
from django.template.loader import render_to_string
from django.utils.safestring import mark_safe

from gobii_email.domain.content import convert_body_to_html_and_plaintext
from gobii_email.domain.invalid_mail import InvalidMail

TEMPLATE = "emails/persistent_agent_email.html"
MAX_BODY_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class RenderedBody:
    """A whole HTML page with its styles inline, and the same in plain text."""

    html: str
    text: str


def render_mail_body(body: str, *, subject: str) -> RenderedBody:
    """`body` (HTML, Markdown, both or plain text) as a page and as text; `subject` is the page's title.

    Raises InvalidMail when there is nothing in it to read or to see, or far too much.
    """
    if len(body) > MAX_BODY_CHARACTERS:
        raise InvalidMail(
            "body", f"it has more than {MAX_BODY_CHARACTERS:,} characters", "Attach it as a file"
        )
    fragment, text = convert_body_to_html_and_plaintext(body)
    if not text.strip() and "<img" not in fragment.lower():
        raise InvalidMail("body", "it is empty", "Write what the mail should say")
    # The agent's HTML is the mail; a preview of it is shown sandboxed.
    page = render_to_string(TEMPLATE, {"body_html": mark_safe(fragment), "subject": subject})  # noqa: S308
    return RenderedBody(html=_inliner().inline(page), text=text)


class Render(Protocol):
    def __call__(self, body: str, *, subject: str) -> RenderedBody: ...


class Renderer:
    """`render_mail_body` for one call that may send the same body to many: each is rendered once."""

    def __init__(self) -> None:
        self._rendered: dict[tuple[str, str], RenderedBody] = {}

    def __call__(self, body: str, *, subject: str) -> RenderedBody:
        key = body, subject
        if key not in self._rendered:
            self._rendered[key] = render_mail_body(body, subject=subject)
        return self._rendered[key]


@cache
def _inliner() -> CSSInliner:
    """Keeps the style sheet as well: media queries for small and dark screens cannot be inlined."""
    return CSSInliner(keep_style_tags=True, load_remote_stylesheets=False)
