"""Byte pairs: the published ids; words: a list that says what it does not know."""
import gzip
import os
from pathlib import Path

import pytest

from seglite import tokenizer as T

needs_vocabulary = pytest.mark.realdata


@pytest.fixture(scope="module")
def pairs():
    return T.BytePairs(Path(os.environ["SEGLITE_DATA"]) / "clip" / "bpe_simple_vocab_16e6.txt.gz")


VECTORS = {"a photo of a cat": [320, 1125, 539, 320, 2368], "a photo of a dog.": [320, 1125, 539, 320, 1929, 269], "a diagram": [320, 22697],
           "aeroplane": [27735, 3980], "bedclothes": [4152, 7080], "motorbike": [33341], "background": [5994]}


@needs_vocabulary
@pytest.mark.parametrize("text", VECTORS)
def test_published_ids(pairs, text):
    assert pairs.encode(text) == VECTORS[text]
    row = pairs(text)[0].tolist()
    assert row == [49406, *VECTORS[text], 49407] + [0] * (75 - len(VECTORS[text]))


@needs_vocabulary
def test_sizes_and_special_ids(pairs):
    assert (pairs.size, pairs.start, pairs.end, pairs.context) == (49408, 49406, 49407, 77)
    assert pairs("").shape == (1, 77) and pairs([]).shape == (0, 77)


@needs_vocabulary
def test_cleaning_does_not_change_the_ids(pairs):
    assert pairs.encode("  A   Photo\nof a CAT ") == VECTORS["a photo of a cat"]
    assert pairs.encode("rock &amp;amp; roll") == pairs.encode("rock & roll")
    assert pairs.encode("it’s") == pairs.encode("it's")


@needs_vocabulary
def test_too_long_is_cut_with_the_end_token_last(pairs):
    row = pairs("cat " * 100)[0].tolist()
    assert len(row) == 77 and row[0] == 49406 and row[-1] == 49407 and set(row[1:-1]) == {2368}
    assert 49407 not in pairs("cat " * 75, truncate=False)[0, :-1].tolist()
    with pytest.raises(ValueError, match="has 102 tokens with start and end; this tokenizer's context is 77"):
        pairs("cat " * 100, truncate=False)


@needs_vocabulary
def test_every_text_comes_back(pairs):
    for text in ("a photo of a cat", "naïve café", "日本語", "🙂 ok", "x²½"):
        assert pairs.decode(pairs(text)[0].tolist()).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text, expected", [
    ("it's 2021!", ["it", "'s", "2", "0", "2", "1", "!"]), ("don't", ["don", "'t"]), ("a.b--c", ["a", ".", "b", "--", "c"]),
    ("x²½", ["x", "²", "½"]), ("snow_man", ["snow", "_", "man"]), ("!'s", ["!'", "s"]), ("<|endoftext|>dog", ["<|endoftext|>", "dog"])])
def test_pieces_follow_the_published_pattern(text, expected):
    assert T.pieces(text) == expected


def test_a_foreign_vocabulary_is_refused(tmp_path):
    (tmp_path / "v.gz").write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(ValueError, match="not the published file"):
        T.BytePairs(tmp_path / "v.gz")
    with pytest.raises(ValueError, match="cannot be read"):
        T.BytePairs(tmp_path / "none.gz")


def test_words():
    words = T.Words(["a photo of a cat", "A dog."], context=6)
    assert words.words == [".", "a", "cat", "dog", "of", "photo"]
    assert words(["a dog", "a zebra"]).tolist() == [[8, 3, 5, 9, 0, 0], [8, 3, 1, 9, 0, 0]]
    assert words(["a photo of a dog"]).tolist() == [[8, 3, 7, 6, 3, 9]]  # cut, the end stays last
    assert words.decode([8, 3, 5, 1, 9, 0]) == "a dog ?"
    assert words.unknown("a zebra on snow") == ["zebra", "on", "snow"]
    assert int(words(["a dog"]).max()) == words.end == words.size - 1  # the tower finds the end as the largest id
    assert T.Words.of(words.words, 6)(["a dog"]).tolist() == words(["a dog"]).tolist()
    assert T.Words(["a a b"], min_count=2).words == ["a"]
    with pytest.raises(ValueError, match="no word occurs 3 times"):
        T.Words(["a b"], min_count=3)
