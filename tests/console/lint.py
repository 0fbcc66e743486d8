"""What assistive technology needs of a page, checked on its HTML."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta", "link", "input", "br", "img", "hr", "rect", "source", "wbr", "col"}
_LABELLED = {"input", "select", "textarea"}
_NEEDS_NO_LABEL = {"hidden", "submit", "button"}


@dataclass
class _Element:
    tag: str
    attrs: dict[str, str]
    parent: "_Element | None"
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def all(self, *tags: str) -> list["_Element"]:
        found = [self] if self.tag in tags else []
        return found + [one for child in self.children for one in child.all(*tags)]

    def whole_text(self) -> str:
        return self.text + "".join(child.whole_text() for child in self.children)

    def is_within(self, tag: str) -> bool:
        return self.tag == tag or (self.parent is not None and self.parent.is_within(tag))


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self._at = _Element("", {}, None)
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append(f"<{tag}> has an attribute twice: {names}")
        made = _Element(tag, {name: value or "" for name, value in attrs}, self._at)
        self._at.children.append(made)
        if tag not in _VOID:
            self._at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._at.children.append(_Element(tag, {name: value or "" for name, value in attrs}, self._at))

    def handle_endtag(self, tag: str) -> None:
        if self._at.tag != tag:
            self.problems.append(f"</{tag}> closes <{self._at.tag}>")
            while self._at.parent is not None and self._at.tag != tag:
                self._at = self._at.parent
        if self._at.parent is not None:
            self._at = self._at.parent

    def handle_data(self, data: str) -> None:
        self._at.text += data


def problems(html: str) -> list[str]:
    """Everything that is wrong with the page, each in a few words."""
    tree = _Tree()
    tree.feed(html)
    root = tree.root
    ids = [one.attrs["id"] for one in _every(root) if "id" in one.attrs]
    return [
        *tree.problems,
        *(f"id {name} stands {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1),
        *_document(root),
        *_headings(root),
        *_controls(root),
        *_tables(root),
        *_references(root, set(ids)),
        *_inline(root),
    ]


def _every(element: _Element) -> list[_Element]:
    return [element] + [one for child in element.children for one in _every(child)]


def _document(root: _Element) -> list[str]:
    found = []
    if not all(one.attrs.get("lang") for one in root.all("html")):
        found.append("<html> has no lang")
    titles = [one for one in root.all("title") if not one.is_within("svg")]
    if len(titles) != 1 or not titles[0].whole_text().strip(" ·"):
        found.append("there is not one <title>")
    for tag in ("main", "h1"):
        if len(root.all(tag)) != 1:
            found.append(f"there is not one <{tag}>")
    links = root.all("a")
    if not links or links[0].attrs.get("href") != "#main":
        found.append("the first link does not skip to the content")
    found += [
        f"a <nav> has no label: {nav.attrs}" for nav in root.all("nav") if not nav.attrs.get("aria-label")
    ]
    found += [f"a link says nothing: {a.attrs}" for a in links if not _says(a)]
    found += [f"an image has no alt: {img.attrs}" for img in root.all("img") if "alt" not in img.attrs]
    found += [
        f"a frame has no title: {one.attrs}" for one in root.all("iframe") if not one.attrs.get("title")
    ]
    drawn = [one for one in root.all("svg") if not (one.attrs.get("role") == "img" and one.all("title"))]
    return found + [f"a drawing says nothing: {one.attrs}" for one in drawn]


def _says(element: _Element) -> bool:
    return bool(element.whole_text().strip() or element.attrs.get("aria-label"))


def _headings(root: _Element) -> list[str]:
    levels = [int(one.tag[1]) for one in root.all("h1", "h2", "h3", "h4", "h5", "h6")]
    jumps = [f"h{b} follows h{a}" for a, b in pairwise(levels) if b > a + 1]
    empty = [f"a heading is empty: {one.tag}" for one in root.all("h1", "h2", "h3") if not _says(one)]
    return jumps + empty


def _controls(root: _Element) -> list[str]:
    labels = {one.attrs.get("for") for one in root.all("label") if _says(one)}
    found = [f"a label is empty: {one.attrs}" for one in root.all("label") if not _says(one)]
    for control in root.all(*_LABELLED):
        kind = control.attrs.get("type", "text")
        if kind in _NEEDS_NO_LABEL:
            continue
        if control.attrs.get("id") not in labels and not control.attrs.get("aria-label"):
            found.append(f"a {control.tag} has no label: {control.attrs.get('name')}")
        if kind == "password" and control.attrs.get("value"):
            found.append(f"a password is shown: {control.attrs.get('name')}")
    found += [f"a button says nothing: {one.attrs}" for one in root.all("button") if not _says(one)]
    found += [
        f"a <meter> has no label: {one.attrs}" for one in root.all("meter") if not one.attrs.get("aria-label")
    ]
    return found + [
        f"a fieldset has no legend: {one.attrs}" for one in root.all("fieldset") if not one.all("legend")
    ]


def _tables(root: _Element) -> list[str]:
    found = []
    for table in root.all("table"):
        if not any(_says(one) for one in table.all("caption")):
            found.append("a table has no caption")
        if not table.all("th"):
            found.append("a table has no headings")
        found += [
            f"a <th> has no scope: {th.whole_text()[:40]}"
            for th in table.all("th")
            if "scope" not in th.attrs
        ]
        widths = {len(row.all("td", "th")) for row in table.all("tr")}
        if len(widths) > 1:
            found.append(f"the rows of a table are of different lengths: {widths}")
    return found


def _references(root: _Element, ids: set[str]) -> list[str]:
    found = []
    for one in _every(root):
        for name in ("aria-labelledby", "aria-describedby", "for", "aria-controls"):
            missing = [part for part in one.attrs.get(name, "").split() if part not in ids]
            found += [f"{one.tag} {name} names {part}, which is not there" for part in missing]
        if one.tag == "a" and one.attrs.get("href", "").startswith("#") and one.attrs["href"][1:] not in ids:
            found.append(f"a link leads to {one.attrs['href']}, which is not there")
    return found


def _inline(root: _Element) -> list[str]:
    """What a strict policy would stop anyhow."""
    found = []
    for one in _every(root):
        found += [f"{one.tag} has {name}" for name in one.attrs if name == "style" or name.startswith("on")]
        if one.tag == "style" or (one.tag == "script" and not one.attrs.get("src")):
            found.append(f"an inline <{one.tag}>")
        for name in ("src", "href", "action"):
            address = one.attrs.get(name, "")
            if one.tag in {"script", "link", "img", "iframe"} and address.startswith(
                ("http:", "https:", "//")
            ):
                found.append(f"{one.tag} loads {address}")
    return found
