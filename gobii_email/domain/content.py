"""What an agent wrote, as the HTML and the plain text of a mail.

Agents write HTML, Markdown, both at once, or plain text, often with escape sequences left over from
JSON; this file tells which it is and makes the best of each. The page around the result is the
template's business, and how HTML reads as text is plaintext's.
"""

import re
from functools import cache
from html import escape
from inspect import cleandoc

from markdown_it import MarkdownIt

from gobii_email.domain.plaintext import html_to_plaintext

_BLOCK_TAGS = (
    "address|article|aside|blockquote|body|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|head|"
    "header|html|li|main|nav|ol|p|pre|section|style|table|tbody|td|tfoot|th|thead|tr|ul"
)
_INLINE_TAGS = (
    "a|abbr|b|big|br|cite|code|del|em|font|hr|i|img|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|"
    "tt|u"
)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ANY_TAG = re.compile(rf"</?(?:{_BLOCK_TAGS}|{_INLINE_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
# What no mail may run or load: shown as the text it is.
_ACTIVE_TAG = re.compile(r"<(/?(?:script|iframe|object|embed|applet)\b[^<>]*)(>?)", re.IGNORECASE)
_RULE = re.compile(r"<hr\b[^<>]*>", re.IGNORECASE)
_PAGE_HEAD = re.compile(r"<title\b[^<>]*>[^<]*</title\s*>|<(?:meta|link|base)\b[^<>]*>", re.IGNORECASE)
_PAGE_TAG = re.compile(r"<!doctype\b[^<>]*>|</?(?:html|head|body)\b[^<>]*>", re.IGNORECASE)
_MARKDOWN_BLOCK = re.compile(
    r"^ {0,3}(?:\#{1,6}[ \t]+\S|[-*+][ \t]+\S|\d{1,9}[.)][ \t]+\S|>[ \t]?\S|```|~~~"
    r"|(?:-{3,}|\*{3,}|_{3,})[ \t]*$|\|?[ \t]*:?-+:?[ \t]*\|[-|: \t]*$)"
)
_LIST_LINE = re.compile(r"^[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_LINK = re.compile(r"\[([^\[\]\n]+)\]\(((?:https?:|mailto:)[^()\s\"<>]+)\)", re.IGNORECASE)
_EMPHASES = (
    (re.compile(r"\*\*(?=[^\s*])([^\n]{1,500}?)(?<=[^\s*])\*\*"), "strong"),
    (re.compile(r"(?<!\w)__(?![a-z_]+__)(?=[^\s_])([^\n]{1,500}?)(?<=[^\s_])__(?!\w)"), "strong"),
    (re.compile(r"~~(?=[^\s~])([^\n]{1,500}?)(?<=[^\s~])~~"), "s"),
    (re.compile(r"(?<![\w*/])\*(?=[^\s*/])([^*\n]{1,500}?)(?<=[^\s*])\*(?![\w*/])"), "em"),
    (re.compile(r"(?<!\w)_(?=[^\s_])([^\n]{1,500}?)(?<=[^\s_])_(?!\w)"), "em"),
)
_INLINE_MARK = re.compile(r"[*_`~\[]")
"""What any Markdown within a line has."""
_MARKDOWN_INLINE = (re.compile(r"`[^`\n]+`"), _LINK, *(pattern for pattern, _ in _EMPHASES))
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_CODE_ELEMENT = re.compile(r"<(code|kbd|samp|tt)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
# Comments, and elements whose text is laid out by hand or is no text: kept as they are.
_VERBATIM = re.compile(
    r"<!--.*?(?:-->|\Z)|<(pre|style|textarea)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL
)
_BLOCK = re.compile(f"{_VERBATIM.pattern}|{_BLOCK_TAG.pattern}", re.IGNORECASE | re.DOTALL)
_STYLES = {
    "table_open": "border-collapse:collapse;width:100%;margin:0 0 16px 0",
    "thead_open": "background-color:#f4f4f5",
    "th_open": "border:1px solid #d4d4d8;padding:8px 10px;text-align:left;font-weight:600",
    "td_open": "border:1px solid #d4d4d8;padding:8px 10px;text-align:left;vertical-align:top",
}


def convert_body_to_html_and_plaintext(body: str, *, emit_logs: bool = True) -> tuple[str, str]:
    """(HTML fragment, plain text) of `body`, whichever of HTML, Markdown, both or neither it is.

    ("", "") for an empty body. `emit_logs` is accepted for callers that pass it; bodies are never logged.
    """
    written = _cleaned(body)
    if not written.strip():
        return "", ""
    if _BLOCK_TAG.search(written):
        html = _html_from_html(written)
    elif _ANY_TAG.search(written) or _has_markdown(written):
        html = _html_from_markdown(written)
    else:
        return _html_from_plain(written), written.strip("\n")
    return html, html_to_plaintext(html)


def decode_escapes(text: str) -> str:
    r"""`text`, a body or a subject, with written-out `\uXXXX` and `\UXXXXXXXX` decoded.

    Surrogate pairs are joined; half a pair becomes U+FFFD.
    """
    if "\\" not in text and text.isascii():
        return text
    decoded = re.sub(r"\\{1,2}u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    decoded = re.sub(
        r"\\{1,2}U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), decoded
    )
    return decoded.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _cleaned(body: str) -> str:
    text = _with_line_breaks(decode_escapes(body))
    text = re.sub(r"\r\n?|\u2028|\u2029", "\n", text)
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ue000\ue001]", "", text)


def _with_line_breaks(text: str) -> str:
    r"""A body whose every line break is a written-out `\n` gets real ones; `C:\new` and code do not."""
    if (
        "\n" in text.strip()
        or not re.search(r"\\n(?![a-z])|\\n\\n|[.!?:>]\\n", text)
        or re.search(r"\b[A-Za-z]:\\", text)
    ):
        return text
    return re.sub(r"(?:\\r)?\\n", "\n", text).replace("\\t", "\t")


def _has_markdown(text: str) -> bool:
    return _has_block(text) or (
        bool(_INLINE_MARK.search(text)) and any(pattern.search(text) for pattern in _MARKDOWN_INLINE)
    )


def _has_block(text: str) -> bool:
    """Line by line, since a search would begin at every character."""
    return any(map(_MARKDOWN_BLOCK.match, text.split("\n")))


def _html_from_plain(text: str) -> str:
    paragraphs = re.split(r"\n[ \t]*\n\s*", escape(text.strip(), quote=False))
    return "\n".join(f"<p>{part}</p>".replace("\n", "<br />\n") for part in paragraphs)


def _html_from_markdown(text: str) -> str:
    """`text` rendered. Inline tags we know count, all others are shown as text; line breaks are kept."""
    parser = _markdown()
    tokens = [token for token in parser.parse(_RULE.sub("\n\n", text)) if token.type != "hr"]
    for token in tokens:
        if style := _STYLES.get(token.type):
            token.attrSet("style", ";".join(filter(None, (style, str(token.attrs.get("style", ""))))))
        for child in token.children or ():
            if child.type == "html_inline" and not _ANY_TAG.fullmatch(child.content):
                child.type = "text"
    return str(parser.renderer.render(tokens, parser.options, {})).strip()


@cache
def _markdown() -> MarkdownIt:
    """CommonMark with tables and strikethrough; indentation makes no code, dashes below a line no heading."""
    parser = MarkdownIt("commonmark", {"breaks": True, "html": True}).enable(["table", "strikethrough"])
    return parser.disable(["code", "lheading", "html_block", "reference"])


def _html_from_html(text: str) -> str:
    """HTML as it is, but for rules, page-level tags, active tags, and Markdown in its text."""
    if '=\\"' in text:
        text = text.replace('\\"', '"')  # quotes still escaped for JSON
    text = _PAGE_TAG.sub("", _PAGE_HEAD.sub("", text))
    text = _RULE.sub("\n", _ACTIVE_TAG.sub(_shown_tag, text))
    pieces, depth, end = [], 0, 0
    for block in _BLOCK.finditer(text):
        pieces += [_repaired_run(text[end : block.start()], is_top=depth == 0), block[0]]
        depth = max(0, depth + _depth_change(block[0]))
        end = block.end()
    return "".join([*pieces, _repaired_run(text[end:], is_top=depth == 0)]).strip()


def _shown_tag(found: re.Match[str]) -> str:
    return f"&lt;{found[1]}{'&gt;' if found[2] else ''}"


def _depth_change(block: str) -> int:
    if block.startswith("<!--") or block.endswith("/>") or _VERBATIM.match(block):
        return 0
    return -1 if block.startswith("</") else 1


def _repaired_run(run: str, *, is_top: bool) -> str:
    """Text and inline tags between two block tags, with the Markdown in them rendered.

    Loose text at the top that spans lines is rendered as a document of its own; inside an element only
    a list is, since a lone "- 5" may well be a number.
    """
    if "\n" not in run and not is_top and not _INLINE_MARK.search(run):
        return run
    text = cleandoc(run)
    if not text:
        return run
    is_document = ("\n" in text and "<br" not in text.lower()) or _has_block(text)
    if is_document if is_top else len(_LIST_LINE.findall(text)) >= 2:
        return f"\n{_html_from_markdown(text)}\n"
    return _repaired_inline(run)


def _repaired_inline(run: str) -> str:
    """`run` with bold, emphasis, code and links rendered; stars and underscores within words stay."""
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return f"\ue000{len(kept) - 1}\ue001"

    run = _CODE_ELEMENT.sub(lambda found: keep(found[0]), run)
    run = _TAG.sub(lambda found: keep(found[0]), run)
    run = re.sub(r"`([^`\n]+)`", lambda found: keep(f"<code>{found[1]}</code>"), run)
    run = _LINK.sub(lambda found: keep(f'<a href="{found[2]}">') + found[1] + keep("</a>"), run)
    for pattern, tag in _EMPHASES:
        run = pattern.sub(rf"<{tag}>\1</{tag}>", run)
    while "\ue000" in run:
        run = re.sub("\ue000([0-9]+)\ue001", lambda found: kept[int(found[1])], run)
    return run
