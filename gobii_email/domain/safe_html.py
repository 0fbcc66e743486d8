"""HTML that somebody else wrote, made fit to be shown: no scripts, no forms, nothing loaded from elsewhere.

Pure: text in, text out. Style attributes become one style sheet, so that a page which shows it can forbid
inline styles and name that sheet by its hash.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from urllib.parse import unquote

import nh3

_TAGS = {
    *("a", "abbr", "b", "bdi", "bdo", "blockquote", "br", "caption", "center", "cite", "code", "col"),
    *("colgroup", "dd", "del", "details", "div", "dl", "dt", "em", "figcaption", "figure", "font"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "kbd", "li", "mark", "ol", "p"),
    *("pre", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "summary", "sup", "table"),
    *("tbody", "td", "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr"),
}
_EVERYWHERE = {"style", "title", "dir", "lang", "align"}
_ATTRIBUTES = {
    "*": _EVERYWHERE,
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "td": {"colspan", "rowspan", "valign", "width", "height"},
    "th": {"colspan", "rowspan", "scope", "valign", "width", "height"},
    "table": {"border", "cellpadding", "cellspacing", "width"},
    "col": {"span", "width"},
    "ol": {"start", "type"},
    "font": {"color", "face", "size"},
}
_PROPERTIES = {
    *("background-color", "border-collapse", "border-radius", "border-spacing", "color", "direction"),
    *("display", "font", "font-family", "font-size", "font-style", "font-variant", "font-weight"),
    *("height", "letter-spacing", "line-height", "list-style-type", "max-width", "min-width"),
    *("overflow-wrap", "text-align", "text-decoration", "text-indent", "text-transform"),
    *("vertical-align", "white-space", "width", "word-break", "word-spacing"),
    *(f"{box}{side}" for box in ("margin", "padding", "border") for side in ("", "-top", "-right")),
    *(f"{box}{side}" for box in ("margin", "padding", "border") for side in ("-bottom", "-left")),
    *(
        f"border{side}-{part}"
        for side in ("", "-top", "-bottom", "-left", "-right")
        for part in ("color", "style", "width")
    ),
}
_NOT_IN_RULES = re.compile(r"[<>{}@\\]|/\*|url\s*\(|image\s*\(|expression\s*\(", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(?:png|gif|jpeg|webp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SafeHtml:
    """A body, and the style sheet its classes refer to."""

    body: str
    css: str

    @property
    def css_hash(self) -> str:
        """The sheet as a Content-Security-Policy names it."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.css.encode()).digest()).decode()}"


def safe_html(html: str, pictures: Mapping[str, str]) -> SafeHtml:
    """`html` without what acts or loads. `pictures` are the mail's own, as `data:` addresses by Content-ID.

    Links stay, since a frame decides whether they lead anywhere; pictures from elsewhere become their
    alternative text.
    """

    def checked(tag: str, attribute: str, value: str) -> str | None:
        return _picture(value, pictures) if tag == "img" and attribute == "src" else value

    cleaned = nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags={"script", "style", "head", "title", "noscript", "template"},
        attributes=_ATTRIBUTES,
        attribute_filter=checked,
        url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
        filter_style_properties=_PROPERTIES,
        link_rel="noopener noreferrer nofollow",
    )
    rewriter = _StylesToClasses()
    rewriter.feed(cleaned)
    rewriter.close()
    return SafeHtml("".join(rewriter.parts), rewriter.css())


def _picture(source: str, pictures: Mapping[str, str]) -> str | None:
    if source.lower().startswith("cid:"):
        source = pictures.get(unquote(source[4:]), "")
    return source if _PICTURE.fullmatch(source) else None


class _StylesToClasses(HTMLParser):
    """Writes well-formed HTML again, with a class in place of each style attribute."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self._classes: dict[str, str] = {}

    def css(self) -> str:
        return "".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        written = "".join(filter(None, (self._attribute(tag, *pair) for pair in attrs)))
        self.parts.append(f"<{tag}{written}>")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(escape(data, quote=False))

    def handle_entityref(self, name: str) -> None:
        self.parts.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.parts.append(f"&#{name};")

    def _attribute(self, tag: str, name: str, value: str | None) -> str:
        value = value or ""
        if name == "style":
            name, value = "class", self._class_of(value)
        elif tag == "a" and name == "href" and value.lower().startswith(("data:", "cid:")):
            return ""
        return f' {name}="{escape(value)}"' if value or name == "alt" else ""

    def _class_of(self, style: str) -> str:
        if not style or _NOT_IN_RULES.search(style):
            return ""
        return self._classes.setdefault(style, f"s{len(self._classes)}")
