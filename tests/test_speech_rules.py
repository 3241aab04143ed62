"""Rules for what is not for the ear, from a setting."""

import pytest

from llm_service.speech_rules import SpeechRules


def test_rules_are_read() -> None:
    """What is not named keeps its default; words may have commas."""
    text = " urls=omit;code_block_words = See the screen, please. ; markdown=false;;"
    assert SpeechRules(urls="omit", code_block_words="See the screen, please.", markdown=False) == SpeechRules.parse(
        text
    )
    assert SpeechRules() == SpeechRules.parse("")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("urls", "NAME=VALUE.*code_blocks, "),
        ("links=omit", "the names are .*urls"),
        ("urls=hosts", "urls is one of omit, host, read"),
        ("markdown=no", "markdown is one of true, false"),
    ],
)
def test_what_is_no_rule(text: str, advice: str) -> None:
    """A slip is said, with what would do."""
    with pytest.raises(ValueError, match=advice):
        SpeechRules.parse(text)
