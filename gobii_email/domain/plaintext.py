"""How HTML reads as plain text: the other half of every mail, and what previews show.

Block by block, with the targets of links written out; no layout beyond paragraphs, lists and table
rows. Never fails: what the parser cannot make sense of is text.
"""

import re
from html.parser import HTMLParser

_PARAGRAPHS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "center",
        "dl",
        "fieldset",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "ul",
    ]
)
_LINES = frozenset(
    [
        "body",
        "caption",
        "dd",
        "div",
        "dt",
        "figcaption",
        "html",
        "li",
        "summary",
        "details",
        "tbody",
        "tfoot",
        "thead",
        "tr",
    ]
)
_SILENT = frozenset(["head", "noscript", "script", "style", "template", "title"])
# Both make the standard parser start over at every "<": minutes for a few kilobytes.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_UNCLOSED = re.compile(r"<(?![^<>]*>)")
_LISTS = frozenset(("ul", "ol"))


def html_to_plaintext(html: str) -> str:
    """The text of `html`, or "": links read `text (target)`, list items start with "- " or "1. "."""
    reader = _Reader()
    reader.feed(_UNCLOSED.sub("&lt;", _COMMENT.sub("", html)))
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._lines: list[str] = []
        self._line = ""
        self._lists: list[int | None] = []  # per open list: the next number, None for bullets
        self._links: list[tuple[str, int]] = []  # per open link: its target, where its text starts
        self._quotes = 0
        self._pre = 0
        self._silent = 0
        self._marker = ""  # of the list item whose first line is still to come

    def text(self) -> str:
        self._end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in _SILENT:
            self._silent += 1
        elif tag == "br":
            self._end_line(keep_empty=True)
        elif tag == "img":
            self.handle_data(f"[{alt}]" if (alt := values.get("alt", "").strip()) else "")
        elif tag == "a":
            self._links.append((values.get("href", "").strip(), len(self._line)))
        elif tag in ("td", "th"):
            self._line = f"{self._line.rstrip()}  " if self._line.strip() else self._line
        elif tag == "li":
            self._end_line()
            self._marker = self._next_marker()
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._open_block(tag, values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("br", "img"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag == "a" and self._links:
            self._close_link(*self._links.pop())
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._close_block(tag)

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._pre:
            *whole, last = data.split("\n")
            for line in whole:
                self._line += line
                self._end_line(keep_empty=True)
            self._line += last
            return
        words = re.sub(r"[ \t\r\n\f]+", " ", data)
        self._line += words.lstrip(" ") if not self._line or self._line.endswith(" ") else words

    def _open_block(self, tag: str, values: dict[str, str]) -> None:
        self._end_line()
        if tag in _PARAGRAPHS and not (tag in _LISTS and self._lists):
            self._end_paragraph()
        if tag in _LISTS:
            start = values.get("start", "")
            self._lists.append(
                (int(start) if re.fullmatch("[0-9]{1,6}", start) else 1) if tag == "ol" else None
            )
        self._quotes += tag == "blockquote"
        self._pre += tag == "pre"

    def _close_block(self, tag: str) -> None:
        self._end_line()
        if tag in _LISTS and self._lists:
            self._lists.pop()
        self._quotes = max(0, self._quotes - (tag == "blockquote"))
        self._pre = max(0, self._pre - (tag == "pre"))
        if tag == "li":
            self._marker = ""
        if tag in _PARAGRAPHS and not self._lists:
            self._end_paragraph()

    def _next_marker(self) -> str:
        number = self._lists[-1] if self._lists else None
        if number is None:
            return "- "
        self._lists[-1] = number + 1
        return f"{number}. "

    def _close_link(self, target: str, start: int) -> None:
        shown = self._line[start:].strip() if start <= len(self._line) else self._line.strip()
        address = target.removeprefix("mailto:")
        if not target or target.startswith(("#", "cid:")) or self._silent or _same(shown, address):
            return
        self._line = f"{self._line.rstrip()} ({address})" if shown else f"{self._line}{address}"

    def _end_line(self, *, keep_empty: bool = False) -> None:
        line = self._line.rstrip() if self._pre else self._line.strip()
        self._line = ""
        self._links = [(target, 0) for target, _ in self._links]
        if not line and not keep_empty:
            return
        depth = max(0, len(self._lists) - 1)
        if self._lists and not self._marker:
            depth += 1  # a further line of an item stands under its text
        self._lines.append("> " * self._quotes + ("  " * depth + self._marker if line else "") + line)
        if line:
            self._marker = ""

    def _end_paragraph(self) -> None:
        blank = ("> " * self._quotes).rstrip()
        if self._lines and self._lines[-1].strip("> "):
            self._lines.append(blank)
        elif self._lines and len(blank) < len(self._lines[-1]):
            self._lines[-1] = blank


def _same(shown: str, target: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"^https?://", "", text.lower()).rstrip("/")

    return bare(shown) == bare(target)
