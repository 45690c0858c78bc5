"""The page: claims first, nothing from elsewhere, nothing unescaped."""

import base64
import html.parser
import re

import pytest

from jaxml import report

NASTY = "<script>alert(\"x\")</script> & 'more'"
CLAIMS = [
    report.Claim("a holds", "Table 1", "0.1", "0.2", "naive 0.9", "3 seeds", "sd 0.02", True, "go"),
    report.Claim("b fails", "Fig. 2", "1", "2", "3", "1 seed", "", False, "python -m b"),
    report.Claim("c is too big", "Fig. 3", "1", "", "", "", "", None, "", "no disk holds it"),
]


class Page(html.parser.HTMLParser):
    """Checks that tags close in order and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_claims_come_first_with_every_column():
    section = report.Section("Paper", CLAIMS, tables={"cap": [{"x": 1 / 3}]}, notes=["A note."])
    page = Page(report.render("Title", [section]))
    order = ["Title", "a holds", "Table 1", "0.1", "0.2", "naive 0.9", "3 seeds, sd 0.02", "yes"]
    order += ["go", "b fails", "no", "python -m b", "c is too big", "not measured at this scale"]
    order += ["no disk holds it"]
    order += ["Paper", "A note.", "cap", "0.3333"]
    place = 0
    for words in order:
        place = page.text.index(words, place) + 1
    assert "3 claims: 1 holds, 1 does not hold, 1 cannot be measured at this scale." in page.text


def test_the_page_needs_no_other_file():
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (832).to_bytes(4, "big") + b"..."
    text = report.render("T", [report.Section("S", CLAIMS, figures={"curve": png})])
    attributes = Page(text).attributes
    (source,) = [value for name, value in attributes if name == "src"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    assert ("width", "520") in attributes
    assert not [name for name, _ in attributes if name == "href"]
    assert not re.search(r"https?:|url\(|@import", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text


def test_everything_is_escaped():
    claim = report.Claim(*[NASTY] * 7, True, NASTY)
    section = report.Section(
        NASTY, [claim], {NASTY: [{NASTY: NASTY}]}, {NASTY: b"p"}, [NASTY], NASTY, NASTY
    )
    text = report.render(NASTY, [section, section])
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    # Title and heading; in each section nine texts about the claim and seven others.
    assert page.text.count(NASTY) == 2 + 2 * (9 + 7)
    assert ("alt", NASTY) in page.attributes and ("href", NASTY) in page.attributes


def test_a_failed_paper_and_an_empty_report():
    text = report.render("T", [report.Section("S", error="ValueError: no data")])
    assert "ValueError: no data" in Page(text).text and "No claim was measured." in text
    assert report.summary([]) == "No claim was measured."
    assert Page(report.render("T", [])).text.strip()


def test_a_claim_goes_through_json_and_back():
    for claim, verdict in zip(CLAIMS, ("yes", "no", "not measured at this scale"), strict=True):
        assert report.Claim(**claim.to_dict()) == claim and claim.verdict == verdict
    with pytest.raises(TypeError):
        report.Claim("a claim without its numbers")
