from llm_service.token_estimate import TokenEstimate, fewest_tokens, most_tokens


def test_the_ratio_is_learnt_within_bounds() -> None:
    """A session's own bytes per token count, as far as a tokenizer can go; no text teaches nothing."""
    estimate = TokenEstimate()
    assert 105 == estimate.likely("x" * 300)
    for text_bytes, tokens, ratio in ((400, 100, 4.0), (400, 1000, 1.0), (4000, 10, 6.0), (0, 10, 6.0)):
        estimate.learn(text_bytes, tokens)
        assert ratio == estimate.bytes_per_token


def test_an_overflow_makes_it_more_careful_down_to_a_bound() -> None:
    """Each overflow halves the bytes a token is held for."""
    estimate = TokenEstimate()
    found = []
    for _ in range(4):
        estimate.overflowed()
        found.append(estimate.bytes_per_token)
    assert [1.5, 0.75, 0.5, 0.5] == found


def test_most_and_fewest() -> None:
    """Letters come at least in pairs, everything else may be a token a byte; eight bytes are the most."""
    assert 5 + 3 == most_tokens("words")
    assert 5 + 3 == most_tokens("1.5")
    assert 5 + 6 == most_tokens("日本")
    assert 5 + 3 + 1 + 30 == most_tokens("words " + "x" * 30)
    assert 5 + 3 + 1 + 3 == most_tokens("words words")
    assert 5 + 3 + 6 == most_tokens("words,words"), "words that hang together are no words to a tokenizer"
    assert 2 == fewest_tokens("日本 and more text")
