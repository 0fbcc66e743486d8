"""What agents write, as sentences: what the HTML and the text of the mail have, and have not."""

import time

import pytest

from gobii_email.domain.content import convert_body_to_html_and_plaintext, decode_escapes
from gobii_email.domain.plaintext import html_to_plaintext

PARAGRAPH_AFTER_TABLE = "<table><tr><td>1</td></tr></table><p>after</p>"
STYLED = '<div style="color:red"><table><tr><td>a_b_c</td></tr></table>\n  <p>text</p>\n</div>'

# sentence: (body, in the HTML, not in the HTML, in the text, not in the text)
ROWS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "a_markdown_table_becomes_a_styled_table_and_its_values_stay_in_the_text": (
        "| City | Rain |\n|------|-----:|\n| Oslo | 12 |",
        ('<table style="', '<thead style="', '<th style="', '<td style="', "text-align:right", "Oslo"),
        ("|",),
        ("City  Rain", "Oslo  12"),
        ("---", "|"),
    ),
    "an_html_table_followed_by_a_paragraph_gains_no_break": (
        PARAGRAPH_AFTER_TABLE,
        (PARAGRAPH_AFTER_TABLE,),
        ("<br",),
        ("1\n\nafter",),
        (),
    ),
    "bold_is_rendered_and_an_inline_anchor_kept_in_one_body": (
        'Some **bold** and <a href="https://x.example/a_b_c">a link</a>',
        ("<strong>bold</strong>", '<a href="https://x.example/a_b_c">a link</a>'),
        ("**",),
        ("bold and a link (https://x.example/a_b_c)",),
        ("**",),
    ),
    "bold_within_a_paragraph_element_is_repaired": (
        "<p>Very **important** and **<i>both</i> of them**</p>",
        ("<p>Very <strong>important</strong>", "<strong><i>both</i> of them</strong>"),
        ("**",),
        ("Very important and both of them",),
        ("*",),
    ),
    "snake_case_calls_and_cron_stars_in_html_are_untouched": (
        "<p>call my_long_name() and _private_call(x_y) at */5 * * * * and 0 */2 * * *, 2*3*4</p>",
        ("my_long_name()", "at */5 * * * * and 0 */2 * * *, 2*3*4"),
        ("<em>", "<strong>"),
        ("*/5 * * * *",),
        (),
    ),
    "single_stars_and_underscores_in_html_become_emphasis": (
        "<p>so *this* and _that_ too</p>",
        ("<em>this</em>", "<em>that</em>"),
        ("*",),
        ("so this and that too",),
        (),
    ),
    "a_markdown_list_in_a_div_becomes_a_list": (
        "<div>Needed:\n- milk\n- **bread**\n</div>",
        ("<ul>", "<li>milk</li>", "<li><strong>bread</strong></li>", "</div>"),
        ("- milk",),
        ("- milk\n- bread",),
        (),
    ),
    "a_lone_negative_number_in_a_cell_is_no_list": (
        "<table><tr><td>- 5</td></tr></table>",
        ("<td>- 5</td>",),
        ("<li>",),
        ("- 5",),
        (),
    ),
    "plain_paragraphs_keep_their_line_breaks": (
        "Dear Ana,\nthank you.\nBob",
        ("Dear Ana,<br />\nthank you.<br />\nBob",),
        (),
        ("Dear Ana,\nthank you.\nBob",),
        (),
    ),
    "markdown_rules_are_removed": (
        "one\n\n---\n\n**two**\n***\nthree",
        ("<p>one</p>",),
        ("<hr", "---", "<h2"),
        ("one",),
        ("---",),
    ),
    "html_rules_are_removed": (
        "<p>one</p><hr class='x'/><p>two</p><hr>",
        ("<p>two</p>",),
        ("<hr",),
        ("one\n\ntwo",),
        (),
    ),
    "a_styled_div_with_table_and_paragraph_stays_as_it_is": (
        STYLED,
        (STYLED,),
        ("<br", "<em>"),
        ("a_b_c",),
        (),
    ),
    "indented_html_lines_are_no_code_blocks": (
        "<div>\n    <p>\n        Hello\n    </p>\n\n        loose\n</div>",
        ("Hello", "loose"),
        ("<code", "<pre"),
        ("Hello",),
        (),
    ),
    "indented_markdown_lines_are_no_code_blocks": (
        "**Plan**\n\n    first we rest",
        ("<strong>Plan</strong>", "<p>first we rest</p>"),
        ("<code", "<pre"),
        ("first we rest",),
        (),
    ),
    "pre_keeps_its_indentation": (
        "<p>x</p><pre>def f():\n    return **kw</pre>",
        ("def f():\n    return **kw",),
        ("<strong>",),
        ("def f():\n    return **kw",),
        (),
    ),
    "plain_text_with_a_blank_line_becomes_two_paragraphs": (
        "first\n\nsecond",
        ("<p>first</p>\n<p>second</p>",),
        (),
        ("first\n\nsecond",),
        (),
    ),
    "headings_and_lists_are_rendered": (
        "# Report\n\n- one\n- two\n  - deep\n\n3. three\n4. four",
        ("<h1>Report</h1>", "<li>one</li>", '<ol start="3">'),
        ("#",),
        ("Report\n\n- one\n- two\n  - deep", "3. three\n4. four"),
        ("#",),
    ),
    "a_markdown_link_shows_its_target_in_the_text": (
        "See [the docs](https://x.example/d?a=1&b=2).",
        ('<a href="https://x.example/d?a=1&amp;b=2">the docs</a>',),
        ("](",),
        ("See the docs (https://x.example/d?a=1&b=2).",),
        (),
    ),
    "an_html_link_shows_its_target_in_the_text": (
        "<p>See <a href='https://x.example/'>the docs</a> or <a href='https://y.example'>y.example</a></p>",
        ("<a href='https://x.example/'>",),
        (),
        ("See the docs (https://x.example/) or y.example",),
        ("(https://y.example)",),
    ),
    "a_markdown_link_with_a_script_target_is_no_link": (
        "**x** [click](javascript:alert(1))",
        ("[click]",),
        ("<a ",),
        ("[click](javascript:alert(1))",),
        (),
    ),
    "inline_code_is_rendered": (
        "Run `ls **x**` now",
        ("<code>ls **x**</code>",),
        ("`",),
        ("Run ls **x** now",),
        (),
    ),
    "inline_code_in_html_is_rendered": ("<p>Run `a *b* c`</p>", ("<code>a *b* c</code>",), ("<em>",), (), ()),
    "a_heading_before_an_html_paragraph_is_rendered": (
        "# Title\n\n<p>Some <b>text</b></p>",
        ("<h1>Title</h1>", "<p>Some <b>text</b></p>"),
        ("#",),
        ("Title\n\nSome text",),
        (),
    ),
    "a_less_than_sign_is_escaped_and_the_text_unchanged": (
        "5 < 10 & 3 > 2",
        ("5 &lt; 10 &amp; 3 &gt; 2",),
        (),
        ("5 < 10 & 3 > 2",),
        (),
    ),
    "a_script_in_plain_text_is_escaped": (
        "try <script>alert(1)</script>",
        ("&lt;script&gt;alert(1)&lt;/script&gt;",),
        ("<script",),
        ("try <script>alert(1)</script>",),
        (),
    ),
    "a_script_in_markdown_is_escaped": (
        "**a** <script>x()</script>",
        ("&lt;script&gt;",),
        ("<script",),
        (),
        (),
    ),
    "a_script_in_html_is_escaped": (
        "<p>a</p><SCRIPT src='//x'>y()</SCRIPT ><iframe src=x></iframe><script",
        ("&lt;SCRIPT src='//x'&gt;", "&lt;iframe", "&lt;script"),
        ("<SCRIPT", "<iframe", "<script"),
        ("y()",),
        (),
    ),
    "an_unknown_tag_in_markdown_is_text": (
        "Put **your** <name> here",
        ("&lt;name&gt;",),
        ("<name>",),
        ("<name>",),
        (),
    ),
    "a_written_out_dash_is_decoded": (r"one \u2014 two", ("one — two",), (r"\u",), ("one — two",), ()),
    "written_out_bullets_and_bold_are_decoded": (
        r"\u2022 **One**: a" + "\n" + r"\u2022 **Two**: b",
        ("• <strong>One</strong>: a<br />", "• <strong>Two</strong>"),
        (r"\u2022", "**"),
        ("• One: a\n• Two: b",),
        ("**",),
    ),
    "written_out_smart_quotes_are_decoded": (r"\u201chi\u201d", ("“hi”",), (), ("“hi”",), ()),
    "an_escape_in_html_is_decoded": (
        r"<p>caf\u00e9 \ud83d\ude00</p>",
        ("<p>café 😀</p>",),
        (),
        ("café 😀",),
        (),
    ),
    "written_out_line_breaks_are_decoded_when_there_are_no_others": (
        r"Hi Bob,\n\nall is well.\n- one\n- two",
        ("<p>Hi Bob,</p>", "<li>one</li>"),
        (r"\n",),
        ("Hi Bob,\n\nall is well.",),
        (),
    ),
    "a_windows_path_keeps_its_backslashes": (
        r"see C:\new\notes. \n",
        (r"C:\new\notes",),
        (),
        (r"C:\new\notes",),
        (),
    ),
    "quotes_escaped_for_json_in_html_are_repaired": (
        r"<p><a href=\"https://x.example\">x</a></p>",
        ('<a href="https://x.example">',),
        ("\\",),
        ("x (https://x.example)",),
        (),
    ),
    "a_whole_page_becomes_a_fragment_that_keeps_its_style": (
        (
            "<!doctype html><html><head><title>T</title><style>p{color:red}</style></head>"
            "<body><p>hi</p></body></html>"
        ),
        ("<style>p{color:red}</style>", "<p>hi</p>"),
        ("<html", "<body", "<title", "doctype"),
        ("hi",),
        ("color", "T\n"),
    ),
    "nul_and_other_controls_vanish": ("a\0b\x1bc\r\nd", ("abc<br />\nd",), ("\0", "\r"), ("abc\nd",), ()),
    "strikethrough_is_rendered": ("~~old~~ new", ("<s>old</s>",), ("~",), ("old new",), ()),
    "a_real_sample_has_no_escapes_left": (
        (
            "<div><p>**Morning brief** \\u2014 3 items</p>\n\n\\u2022 **AAPL**: \\u201cup\\u201d 2%\n"
            "\\u2022 _MSFT_: flat "
            "<a href='https://x.example/q?a=b_c_d'>source</a>\n\nRegards\\u2026</div>"
        ),
        (
            "<strong>Morning brief</strong> —",
            "<strong>AAPL</strong>: “up”",
            "<em>MSFT</em>",
            "q?a=b_c_d",
            "…",
        ),
        ("\\u", "**"),
        ("Morning brief — 3 items", "source (https://x.example/q?a=b_c_d)"),
        ("\\u", "**"),
    ),
}


@pytest.mark.parametrize(
    ("body", "html_has", "html_lacks", "text_has", "text_lacks"), ROWS.values(), ids=ROWS.keys()
)
def test_a_body_is_converted(
    body: str,
    html_has: tuple[str, ...],
    html_lacks: tuple[str, ...],
    text_has: tuple[str, ...],
    text_lacks: tuple[str, ...],
) -> None:
    html, text = convert_body_to_html_and_plaintext(body, emit_logs=False)
    assert [part for part in html_has if part not in html] == [], html
    assert [part for part in html_lacks if part in html] == [], html
    assert [part for part in text_has if part not in text] == [], text
    assert [part for part in text_lacks if part in text] == [], text


@pytest.mark.parametrize("body", ["", "  \n ", "\0", "<p></p>"[:0]])
def test_an_empty_body_is_empty_twice(body: str) -> None:
    assert convert_body_to_html_and_plaintext(body) == ("", "")


def test_a_lone_table_ends_with_its_own_tag() -> None:
    assert convert_body_to_html_and_plaintext("<table><tr><td>1</td></tr></table>\n")[0].endswith("</table>")


def test_bodies_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    convert_body_to_html_and_plaintext("the secret plan", emit_logs=True)
    assert "secret plan" not in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"Rocket \ud83d\ude80", "Rocket 🚀"),
        (r"\U0001F680", "🚀"),
        ("\ud83d\ude80", "🚀"),
        (r"half \ud83d", "half \ufffd"),
        (r"no \u12 escape", r"no \u12 escape"),
        (r"\\u2014", "—"),
    ],
    ids=["written_pair", "long_form", "real_pair", "half_a_pair", "too_short", "doubled_backslash"],
)
def test_escapes_in_subjects_are_decoded(text: str, expected: str) -> None:
    assert decode_escapes(text) == expected


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>Hello <b>you</b></p>", "Hello you"),
        (
            "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol><li>x<br>y</li><li>z</li></ol>",
            "- a\n  - b\n- c\n\n1. x\n  y\n2. z",
        ),
        ("<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>", "A  B\n1  2"),
        ("<a href='mailto:a@x.example'>a@x.example</a> <a href='#top'>up</a>", "a@x.example up"),
        ("<a href='https://x.example'><img src='cid:1' alt='Logo'></a>", "[Logo] (https://x.example)"),
        ("", ""),
        ("<p>open <b>bold <i>x</p></b></li></td> 1 < 2 <p", "open bold x\n\n1 < 2 <p"),
        ("a<blockquote><p>q</p><p>r</p></blockquote>b", "a\n\n> q\n>\n> r\n\nb"),
        ("x<!-- no --><style>p{}</style><script>no()</script>&amp;&nbsp;y", "x&\xa0y"),
    ],
    ids=[
        "paragraph",
        "lists",
        "table",
        "mail_link",
        "image_link",
        "empty",
        "malformed",
        "quote",
        "invisible_parts",
    ],
)
def test_html_reads_as_text(html: str, expected: str) -> None:
    assert html_to_plaintext(html) == expected


@pytest.mark.parametrize(
    "body",
    [
        "<p>" + "<pre " * 20_000,
        "<p><!--" * 20_000,
        "a" + " " * 50_000 + "b **c**",
        "[" * 50_000,
        "**a " * 20_000,
        "<p>" + "</a" * 20_000,
        "__a" * 20_000,
        "- " * 10_000,
    ],
    ids=["open_tags", "comments", "blanks", "brackets", "stars", "end_tags", "underscores", "markers"],
)
def test_no_body_takes_long_to_convert(body: str) -> None:
    started = time.process_time()
    convert_body_to_html_and_plaintext(body)
    assert time.process_time() - started < 5
