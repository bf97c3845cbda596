"""
What can be measured in stories without a judge: length, variety, scripts, and what is copied from other stories.

A story is a dict of which `continuation` (what a model wrote), `prompt`, `kept` and `ended` are read; its measures go into
story['measures'], nan where there is nothing to measure.
"""

import collections
import functools
import itertools
import math
import re
import unicodedata

import numpy as np

CODES = {'hindi': 'hi', 'marathi': 'mr', 'bangla': 'bn', 'english': 'en', 'french': 'fr', 'news': 'en'}  # of languages (ISO 639-1), by their folders in data/
LETTERS, MARKS = (''.join(c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] in kinds) for kinds in ('LN', 'M'))
# A word keeps its signs and joiners, as in tokenizer.WORDS, which \w would cut off; listed one by one they make a table that
# is far faster than \w with ranges. Of scripts that put no spaces between words a letter is a word.
UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff'
WORD = re.compile(rf'[{UNSPACED}][{MARKS}]*|[{LETTERS}{MARKS}\u200c\u200d\U00010000-\U0003ffff]+')


class Words:
    """The words of some texts in one row, as hashes, with a hash of any run of them at hand.

    The hash of the n words from i on is their polynomial Σ w[i+k] B^k modulo 2^64, from a difference of prefix sums (Karp and
    Rabin 1987, "Efficient randomized pattern-matching algorithms").
    """

    def __init__(self, texts):
        rows = [np.fromiter(map(hash, WORD.findall(text.lower())), np.int64) for text in texts]
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.owner = np.repeat(np.arange(len(rows)), self.lengths)  # the text that each word is in
        self.ends = (self.starts + self.lengths)[self.owner]
        base = 0x9e3779b97f4a7c15  # odd, so that it has an inverse; it and the factor in runs are SplitMix64's
        powers, self.inverse = (np.cumprod(np.r_[np.uint64(1), np.full(len(self.owner), b, np.uint64)])[:-1] for b in (base, pow(base, -1, 1 << 64)))
        self.sums = np.r_[np.uint64(0), np.cumsum(np.concatenate([*rows, np.array([], np.int64)]).view(np.uint64) * powers)]

    def runs(self, n, at=None):
        """The places (among `at`, if given) where n words of one text begin, and those runs' hashes."""
        at = np.arange(len(self.owner)) if at is None else at
        at = at[at + n <= self.ends[at]]
        hashes = (self.sums[at + n] - self.sums[at]) * self.inverse[at]
        return at, (hashes ^ hashes >> np.uint64(29)) * np.uint64(0xbf58476d1ce4e5b9)


def longest_runs(ours, theirs):
    """For every word in ours, how many words from it on stand in the same order in one of theirs. Words, Words -> (words in ours,)

    Run lengths 1, 2, 3, …; only where n words were found can there be n + 1, so that both sides shrink on the way.
    """
    length = np.zeros(len(ours.owner), np.int64)
    at = places = None
    for n in itertools.count(1):
        (at, keys), (places, their_keys) = ours.runs(n, at), theirs.runs(n, places)
        maybe = np.zeros(1 << 24, bool)  # a filter, since most of theirs are none of ours
        maybe[keys >> np.uint64(40)] = True
        hit = maybe[their_keys >> np.uint64(40)]
        places, their_keys = places[hit], np.sort(their_keys[hit])
        if not len(at) or not len(places):
            return length
        found = their_keys[np.minimum(np.searchsorted(their_keys, keys), len(their_keys) - 1)] == keys
        at = at[found]
        length[at] = n


def shared_bigrams(ours, theirs):
    """Yield for each of our texts how many of its different word pairs each of theirs has, (len(theirs),), and how many pairs it has.

    An inverted index: for every pair of ours the numbers of their texts that hold it.
    """
    n = len(theirs.lengths)
    at, keys = ours.runs(2)
    pairs, index = np.unique(keys, return_inverse=True)
    places, their_keys = theirs.runs(2)
    column = np.minimum(np.searchsorted(pairs, their_keys), len(pairs) - 1)
    hit = pairs[column] == their_keys if len(pairs) else np.zeros(len(their_keys), bool)
    postings = np.sort(column[hit] * n + theirs.owner[places[hit]])
    postings = postings[np.diff(postings, prepend=-1) > 0]
    bounds = np.searchsorted(postings, np.arange(len(pairs) + 1) * n)
    postings %= max(1, n)
    cuts = np.searchsorted(ours.owner[at], np.arange(len(ours.lengths) + 1))
    for begin, end in itertools.pairwise(cuts):
        mine = np.unique(index[begin:end])
        holders = [postings[bounds[i]:bounds[i + 1]] for i in mine]
        yield np.bincount(np.concatenate(holders) if holders else np.array([], np.int64), minlength=n), len(mine)


# -----------------------------------------------------------------------------
# measures

@functools.cache
def script_of(char):
    """'DEVANAGARI' for म or ा, 'LATIN' for é, '' for what is not a letter or a sign on one."""
    return unicodedata.name(char, '').split(' ')[0] if unicodedata.category(char)[0] in 'LM' else ''


def scripts_in(text):
    """How many letters are in which script; signs that go with any script are left out."""
    counts = collections.Counter()
    for char, n in collections.Counter(text).items():
        counts[script_of(char)] += n
    return collections.Counter({name: n for name, n in counts.items() if name not in ('', 'COMBINING', 'VARIATION', 'ZERO')})


def script_share(text, script):
    """The share of the letters in a text that are of this script, nan where there are none."""
    letters = scripts_in(text)
    return letters[script] / letters.total() if letters else math.nan


def measure_text(stories, script):
    """What is measured in each story, into story['measures'] -> what is measured in all of them together, {measure: number or None}

    script: the one that letters should be in. repeated_4: the share of a story's 4-grams that it had before (Welleck et al. 2020,
    "Neural Text Generation with Unlikelihood Training"). distinct_n: different n-grams over all n-grams (Li et al. 2016, "A
    Diversity-Promoting Objective Function"); the more words, the fewer. self_rouge2: 2 |A ∩ B| / (|A| + |B|), A and B the sets
    of word pairs of two stories, its mean over all pairs of stories (Eldan and Li 2023, "TinyStories").
    """
    words = Words([story['continuation'] for story in stories])
    fours, keys = words.runs(4)
    cuts = np.searchsorted(words.owner[fours], np.arange(len(stories) + 1))
    for story, n, begin, end in zip(stories, words.lengths, cuts, cuts[1:]):
        story['measures'] = {
            'words': int(n),
            'ended': math.nan if story['ended'] is None else float(story['ended'] == 'eos'),
            'opening_kept': float(story['kept']) if story['prompt'] else math.nan,
            'right_script': script_share(story['continuation'], script),
            'repeated_4': 1 - len(np.unique(keys[begin:end])) / (end - begin) if end > begin else math.nan}
    corpus = {}
    for n in (1, 2, 3):
        _, keys = words.runs(n)
        corpus[f'distinct_{n}'] = len(np.unique(keys)) / len(keys) if len(keys) else None
    pairs, keys = words.runs(2)
    sizes = np.array([len(np.unique(some)) for some in np.split(keys, np.searchsorted(words.owner[pairs], np.arange(1, len(stories))))])
    alike = [(2 * counts / np.maximum(1, n + sizes)).sum() - 1 for counts, n in shared_bigrams(words, words) if n]  # all but the story itself
    corpus['self_rouge2'] = float(np.mean(alike)) / (len(stories) - 1) if alike and len(stories) > 1 else None
    return corpus


def measure_copying(stories, batches, ngrams):
    """Look for what was written in the training stories, as the TinyStories paper does (Eldan and Li 2023), into story['measures'].

    batches: lists of training stories. ngrams: the lengths n of copied_n. Measured are the longest run of words that a training
    story has, the share of n-grams that any of them has, and the precision of ROUGE-2 to the nearest, which goes into story['nearest']:
    |G(story) ∩ G(training story)| / |G(story)|, G being the set of word pairs. The opening, which was given, is left out.
    """
    ours = Words([story['continuation'] for story in stories])
    lengths = np.zeros(len(ours.owner), np.int64)
    nearest, nearest_text = np.full(len(stories), math.nan), [''] * len(stories)
    for texts in batches:
        theirs = Words(texts)
        lengths = np.maximum(lengths, longest_runs(ours, theirs))
        for i, (counts, n) in enumerate(shared_bigrams(ours, theirs)):
            best = counts.argmax()
            if n and not counts[best] / n <= nearest[i]:
                nearest[i], nearest_text[i] = counts[best] / n, texts[best]
    for story, start, n, rouge, text in zip(stories, ours.starts, ours.lengths, nearest, nearest_text):
        run = lengths[start:start + n]
        story['measures'] |= {f'copied_{k}': float((run[:n - k + 1] >= k).mean()) if n >= k else math.nan for k in ngrams} | {
            'copied_whole': float(run[0] == n) if n else math.nan, 'longest_copied': int(run.max(initial=0)), 'nearest_rouge2': float(rouge)}
        story['nearest'] = text
