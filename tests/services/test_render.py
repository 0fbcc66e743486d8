"""What a reader sees: a page with its styles inline that fetches nothing, and the same as text."""

import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import django
import pytest
from django.conf import settings
from django.test import override_settings

from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.services.render import MAX_BODY_CHARACTERS, TEMPLATE, render_mail_body

if not settings.configured:  # run alone, without the suite's settings
    settings.configure(
        INSTALLED_APPS=["gobii_email"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    )
    django.setup()


def test_markdown_becomes_a_page_with_inline_styles_and_a_text() -> None:
    rendered = render_mail_body("# Hello\n\nSee [docs](https://x.example).", subject="A <b> & c")
    assert re.search(r'<h1 style="[^"]*font-size[^"]*">Hello</h1>', rendered.html)
    assert re.search(r'<a href="https://x.example" style="[^"]+">docs</a>', rendered.html)
    assert "<title>A &lt;b&gt; &amp; c</title>" in rendered.html
    assert rendered.text == "Hello\n\nSee docs (https://x.example)."


def test_an_agents_own_style_sheet_is_inlined() -> None:
    rendered = render_mail_body("<style>.x{color:#ff0000}</style><p class='x'>hi</p>", subject="s")
    assert re.search(r'<p [^>]*style="[^"]*color: ?#ff0000', rendered.html)
    assert rendered.text == "hi"


def test_the_page_itself_loads_nothing() -> None:
    page = render_mail_body("hello", subject="s").html
    assert not re.search(r"src=|https?:|url\(|@import|<link|<script", page)


def test_no_remote_style_sheet_is_fetched(tmp_path: Path) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        link = f'<link rel="stylesheet" href="http://127.0.0.1:{server.server_port}/x.css">'
        with template_in(tmp_path, link + "{{ body_html }}"):
            assert "hi" in render_mail_body(f"{link}<p>hi</p>", subject="s").html
        server.shutdown()
    assert asked == []


def test_a_picture_reference_survives() -> None:
    assert 'src="cid:my photo.png"' in render_mail_body('<img src="cid:my photo.png">', subject="s").html


@pytest.mark.parametrize("body", ["", " \n ", "\0", "<p> </p>", "<div></div>", "---"])
def test_an_empty_body_is_refused(body: str) -> None:
    with pytest.raises(InvalidMail) as caught:
        render_mail_body(body, subject="s")
    assert caught.value.field == "body"


def test_a_body_beyond_all_measure_is_refused() -> None:
    with pytest.raises(InvalidMail):
        render_mail_body("x" * (MAX_BODY_CHARACTERS + 1), subject="s")


def test_a_host_project_may_bring_its_own_template(tmp_path: Path) -> None:
    with template_in(tmp_path, "<style>p{color:blue}</style>OURS {{ body_html }}"):
        assert 'OURS <p style="color: blue;">hi</p>' in render_mail_body("hi", subject="s").html


def template_in(directory: Path, source: str) -> override_settings:
    (directory / "emails").mkdir()
    (directory / TEMPLATE).write_text(source)
    engine = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [str(directory)],
        "APP_DIRS": True,
    }
    return override_settings(TEMPLATES=[engine])
