"""Text from others is shown without anything that a terminal would obey or hide."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.cli.logs import LineFormatter
from rustguard_py.model.printable import is_hidden, printable, printable_json

anything = st.text(st.characters(codec=None), max_size=20)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("läptop 笔记本 🙂 'x' \\", "läptop 笔记本 🙂 'x' \\"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\r\tc\x7f\x9b", "a\\x0ab\\x0d\\x09c\\x7f\\x9b"),
        ("txt\u202egpj", "txt\\u202egpj"),
        ("\u2066\u200b\ufeff\xad", "\\u2066\\u200b\\ufeff\\xad"),
        ("a\u2028b\xa0c", "a\\u2028b\\xa0c"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("a\ufe0f\u3164\u2800", "a\\ufe0f\\u3164\\u2800"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(anything)
def test_whatever_comes_what_is_shown_is_printable_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert not any(map(is_hidden, shown))
    assert printable(shown) == shown
    shown.encode()


@given(st.dictionaries(anything, st.lists(anything, max_size=3), max_size=3), st.sampled_from([None, 2]))
def test_json_means_the_same_and_shows_nothing_hidden(document: dict[str, list[str]], indent: int | None) -> None:
    shown = printable_json(document, indent)
    assert json.loads(shown) == document
    assert not any(map(is_hidden, shown.replace("\n", "")))


def test_a_peer_can_not_forge_a_line_of_the_log() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("%s joined", "anna\nroot joined\x1b[2J")
    time, _, message = stream.getvalue().partition(" ")
    assert datetime.fromisoformat(time).tzinfo is not None
    assert message == "anna\\x0aroot joined\\x1b[2J joined\n"
