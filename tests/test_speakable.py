"""What is for the ear, and what it stands for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.speakable import SpeakableText
from llm_service.speech_rules import Piece, SpeechRules

RULES = SpeechRules()

# Bits that marks are made of, so that chance puts them together, whole and broken.
BITS = st.sampled_from(
    [
        *"*_`~[]()<>&\\$|#!.,;:-=+^1x \t\n",
        *(
            "```",
            "~~~",
            "\n\n",
            "![",
            "](",
            "[^1]",
            "[1, 2]",
            "<think>",
            "</think>",
            "<br>",
            '<a b="',
            "<b c=d",
            "[a]: ",
            "\n    f(",
            "\n|-",
            "|x|\n",
            "&amp;",
            "https://",
            "www.",
        ),
        *(
            "$$",
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "$a",
            "a.b/c",
            "http",
            "# ",
            "- ",
            "- [x] ",
            "1. ",
            "| ",
            "|--|\n",
            "> ",
            "😀",
            "👩\u200d💻",
            "1️⃣",
        ),
        *("*" * 250, "-" * 130, "-" * 199, " " * 250, "`" * 245, "a" * 85),
        *("Word", "word", "好。", "「", "」", "ไทย", "नमस्ते", "é", "e\u0301"),
    ]
)


def pieces_of(text: str, rules: SpeechRules = RULES, cuts: tuple[int, ...] = ()) -> list[Piece]:
    speakable = SpeakableText(rules)
    out: list[Piece] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        out += speakable.feed(text[start:end])
    return out + speakable.finish()


def said(text: str, rules: SpeechRules = RULES) -> str:
    return "".join(piece.spoken for piece in pieces_of(text, rules))


def characters(pieces: list[Piece]) -> list[tuple[str, int]]:
    """Each character said, with how much of the response it takes to have said it."""
    out, position = [], 0
    for spoken, raw, _ in pieces:
        in_step = len(spoken) == raw
        for at, character in enumerate(spoken, 1):
            out.append((character, position + (at if in_step else raw if at == len(spoken) else 0)))
        position += raw
    return out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Title\n\nText", "Title. Text"),
        ("## Is it?\nYes", "Is it? Yes"),
        ("one\ntwo", "one two"),
        ("One\nTwo", "One Two"),
        ("One\n\nTwo", "One. Two"),
        ("好\n\n的", "好。 的"),
        ("- a\n- b\n* c\n+ d", "a. b. c. d"),
        ("- [ ] a\n- [x] b", "a. b"),
        ("1. a\n2) b", "1. a. 2) b"),
        ("> quoted\n> > - more", "quoted. more"),
        ("a\n---\nb", "a. b"),
        ("a\n\n***\n\nb", "a. b"),
        ("Title\n=====\nText", "Title. Text"),
        ("**bold** *it* __b__ _i_ ~~s~~ ***bi***", "bold it b i s bi"),
        ("2 * 3 = 6, 2*3, snake_case_name, ~5", "2 * 3 = 6, 2*3, snake_case_name, ~5"),
        ("`a_b*c*`, ``x``", "a_b*c*, x"),
        ("[text](https://a.b/c_(d) 'title') on", "text on"),
        ("![a cat](cat.png) on", "a cat on"),
        ("[text][ref], [plain]", "text, plain"),
        ("[a](never closed\nb", "a b"),
        ("[a](http://b.c\nD", "a D"),
        ("So[^1] it is.[2] “So.”[3, 4] He said,[5–7] yes![8][9]", "So it is. “So.” He said, yes!"),
        ("As was shown [1]. And so [2][3]!", "As was shown . And so !"),
        (
            "It is [1, 2, 3]. x[0] is 1; sort [3,1] or [[1,2],[3]] to [1]+5",
            "It is 1, 2, 3. x 0 is 1; sort 3,1 or 1,2,3 to 1+5",
        ),
        ("a\n\n[^1]: the note\n[x]: http://a.b\nb", "a. b"),
        ("[x]: <a.md> 'title'\n[y z]: ./b (title) \n[1]: #c \"t\"\nb", "b"),
        (
            "[Alice]: Hello, you?\n[10:30]: We begin.\n[Verse 1]: Roses",
            "Alice: Hello, you? 10:30: We begin. Verse 1: Roses",
        ),
        ("[x]: https://a.b/c is where it is", "x: a.b is where it is"),
        ("a<br>b <b>c</b> <!-- d -->e 1 < 2 > 1", "a b c e 1 < 2 > 1"),
        ("if (a<b && c>d), x<y, y>z", "if (a<b && c>d), x<y, y>z"),
        ("<your-name>: List<String> <p and q>", "<your-name>: List<String> <p and q>"),
        ('<a href="x y" id=z>b</a><br/>c <details open>d <sup>2</sup>', "b c d 2"),
        ("<a.b@c.org> or <https://c.org/d> > 5", "a.b@c.org or c.org > 5"),
        ("a &amp; b &lt; c &co &nbsp;d", "a & b < c &co  d"),
        (r"\*a\* \# \(x^2\) \[y\] $$z$$ $5 \n", r"*a* # y z $5 \n"),
        (r"if \(a = b\) then \(\frac{a}{b}\), so.", "if a = b then , so."),
        ("\\[\nx = \\sqrt{2}\n\\]\nso\n$$\na + b\n$$\ndone", "so \na + b\n done"),
        (r"if $a=1$ and $x_1$, $5 is $6, $HOME and $PATH", "if a=1 and , $5 is $6, $HOME and $PATH"),
        ("\\(never {closed\nBut on", "But on"),
        ("\\[never \\closed\n\nBut on", "But on"),
        ("\\(" + "a b " * 30 + "\\)", "a b " * 30),
        ("see https://www.example.com/a?b=c#d.", "see example.com."),
        ("<https://example.com/a>, (http://user:pw@h.org:80/)", "example.com, (h.org)"),
        ("(https://en.a.org/wiki/A_(b).)", "(en.a.org.)"),
        ("www.example.com/x, wwww. httpx://a", "example.com, wwww. httpx://a"),
        ("mail a.b@example.com", "mail a.b@example.com"),
        ("hi 😀 you 👩‍💻! 👍🏽 1️⃣ 🇩🇪", "hi you ! 1 "),
        ("a:\n```python\nb\n```\nc", "a: c"),
        ("a\n~~~\nb\n```\n~~~\nc", "a. c"),
        ("```\nnever closed\nc", ""),
        ("````\na\n```\nb\n````\nc", "c"),
        ("```pip install x``` installs it.\nSo.", "pip install x installs it. So."),
        ("`never closed\na *b*", "never closed a b"),
        ("So:\n\n    run(it)\n\n    # again\nDone.", "So: Done."),
        ("\tx = 1\ny", "y"),
        ("So\n    it(is) wrapped", "So it(is) wrapped"),
        ("1. One\n\n    f(x) is in the item\n\n    - g[0]", "1. One. f(x) is in the item. g 0"),
        ("So.\n\n    It was a dark night.", "So. It was a dark night."),
        ("|x| is what\nwe call so.", "|x| is what we call so."),
        ("|x|\n|y|", "|x| |y|"),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |\n\nc", "a, b. 1, 2. c"),
        ("a | b", "a | b"),
        ("<think>hm\n\n</think>\n\nYes", "Yes"),
        ("a <thinking>b</thinking> c", "a c"),
        ("Models emit a <think> tag first. Yes.", "Models emit a <think> tag first. Yes."),
        ("<think>never closed", ""),
    ],
)
def test_by_default(text: str, expected: str) -> None:
    """Marks are left out, lines that lack a full stop get one, the rest is said as it is."""
    assert expected == said(text)


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a\n```py\nb = 1\n```\nc", replace(RULES, code_blocks="read"), "a. b = 1\n. c"),
        ("a\n```py\nb = 1\n```\nc", replace(RULES, code_block_words="Code."), "a. Code.  c"),
        ("    f()\n    g()\nc", replace(RULES, code_block_words="Code."), "Code.  c"),
        ("a\n\n    f(*b*)\nc", replace(RULES, code_blocks="read"), "a. f(*b*). c"),
        ("a `b` c", replace(RULES, inline_code="omit"), "a c"),
        ("| a | b |\n|---|---|\nc", replace(RULES, tables="omit"), "c"),
        ("see https://a.b/c, ok", replace(RULES, urls="omit"), "see , ok"),
        ("see https://a.b/c, ok", replace(RULES, urls="read"), "see https://a.b/c, ok"),
        ("hi 😀", replace(RULES, emoji="read"), "hi 😀"),
        (r"\(x^2\) $a=1$", replace(RULES, formulas="read"), "x^2 a=1"),
        (r"\(x\) $a=1$", replace(RULES, formulas="omit"), " "),
        ("so[^1] it[2]\n\n[^1]: why", replace(RULES, footnotes="read"), "so^1 it 2. why"),
        ("<think>a</think> b", replace(RULES, reasoning="read"), "a b"),
        ("# *a* `b` [c](d)\n- e", replace(RULES, markdown=False), "# *a* `b` [c](d) - e"),
        ("<think>a</think><b>", replace(RULES, markdown=False), "<b>"),
    ],
)
def test_each_rule_can_be_set(text: str, rules: SpeechRules, expected: str) -> None:
    """What is left out can be read, and the other way round."""
    assert expected == said(text, rules)


@pytest.mark.parametrize("length", [79, 80, 81])
@pytest.mark.parametrize(("opening", "closing"), [("$$", "$$"), ("\\(", "\\)"), ("$", "$")])
def test_deltas_do_not_matter_for_a_long_formula(opening: str, closing: str, length: int) -> None:
    """At the length where a formula is no longer waited for as well."""
    text = opening + "a*" * (length // 2) + "b" * (length % 2) + closing + " c"
    assert characters(pieces_of(text)) == characters(pieces_of(text, cuts=tuple(range(1, len(text)))))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_deltas_do_not_matter(data: st.DataObject) -> None:
    """However the text is split: the same is said, for the same characters; nothing is left over."""
    text = "".join(data.draw(st.lists(BITS, max_size=40)))
    cuts = tuple(sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6))))
    rules = data.draw(st.sampled_from([RULES, SpeechRules("read", tables="omit", urls="omit", footnotes="read")]))
    whole, split = pieces_of(text, rules), pieces_of(text, rules, cuts)
    single = pieces_of(text, rules, tuple(range(1, len(text))))
    assert len(text) == sum(piece.raw for piece in whole)
    assert characters(whole) == characters(split) == characters(single)
