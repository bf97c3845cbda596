"""data/<language>/exam.tsv: minimal pairs, parallel by line number, that neither length nor word counts can solve."""

import math
import unicodedata
from collections import Counter

import pytest

from conftest import PROJECT

LANGUAGES = ['english', 'hindi', 'marathi', 'bangla', 'french']


def read_exam(language):
    """exam.tsv -> a list of [phenomenon, good, bad]."""
    text = (PROJECT / 'data' / language / 'exam.tsv').read_bytes().decode()
    assert text.endswith('\n') and '\r' not in text
    assert unicodedata.is_normalized('NFC', text)
    return [line.split('\t') for line in text.splitlines()]


def words(text):
    return [word.strip('.,;:?!।“”"\'') for word in text.lower().split()]


def share_preferred(pairs, score):
    """Share of (good, bad) in which `score` prefers good; a tie counts half."""
    won = 0.0
    for good, bad in pairs:
        difference = score(good) - score(bad)
        if abs(difference) < 1e-9:
            won += 0.5
        elif difference > 0:
            won += 1
    return won / len(pairs)


@pytest.mark.parametrize('language', LANGUAGES)
def test_each_line_is_a_pair_of_its_own(language):
    rows = read_exam(language)
    assert len(rows) == 500
    assert {len(row) for row in rows} == {3}
    sentences = Counter()
    for _, good, bad in rows:
        sentences.update([good, bad])
    assert [sentence for sentence, count in sentences.items() if count > 1] == []
    assert [sentence for sentence in sentences if sentence != ' '.join(sentence.split())] == []
    assert [sentence for sentence in sentences if sentence[-1] not in '.?!।'] == []


@pytest.mark.parametrize('language', LANGUAGES)
def test_a_line_has_the_same_phenomenon_in_all_languages(language):
    phenomena = [row[0] for row in read_exam(language)]
    assert phenomena == [row[0] for row in read_exam('english')]
    counts = Counter(phenomena)
    assert len(counts) == 11
    assert min(counts.values()) >= 40 and max(counts.values()) <= 50


@pytest.mark.parametrize('language', LANGUAGES)
def test_length_does_not_tell_good_from_bad(language):
    pairs = [row[1:] for row in read_exam(language)]
    assert share_preferred(pairs, lambda text: len(text.split())) == pytest.approx(0.5, abs=0.05)
    assert share_preferred(pairs, len) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize('language', LANGUAGES)
def test_a_unigram_model_scores_chance(language):
    counts = Counter()
    for file in (PROJECT / 'data' / language).glob('*.txt'):
        counts.update(words(file.read_text(encoding='utf-8')))
    total = sum(counts.values()) + len(counts)

    def log_likelihood(text):
        return sum(math.log((counts[word] + 1) / total) for word in words(text))

    by_phenomenon = {}
    for phenomenon, good, bad in read_exam(language):
        by_phenomenon.setdefault(phenomenon, []).append((good, bad))
    pairs = [pair for group in by_phenomenon.values() for pair in group]
    assert share_preferred(pairs, log_likelihood) == pytest.approx(0.5, abs=0.05)
    for phenomenon, group in by_phenomenon.items():
        assert share_preferred(group, log_likelihood) == pytest.approx(0.5, abs=0.1), phenomenon
