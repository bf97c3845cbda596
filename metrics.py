"""
Measures of stories that need no judge, and the statistics of grades. numpy alone.

    measure_text(stories, script)               length, repetition, script of each story
    measure_diversity(stories)                  how different the stories of one model are from each other
    measure_copying(stories, batches, ngrams)   how much of each story is copied from training stories
    estimate, ratio                             means with 95 % bootstrap intervals
    permutation_p, holm                         is one model better than another
    agreement                                   do judges agree

A story is a dict. The measures read its `continuation` (what the model wrote), `prompt`, `kept` and `ended`, and write
story['measures'], a dict of numbers; nan means that there is nothing to measure. In this file "ours" are the stories that
are measured and "theirs" are the training stories that they are compared with.
"""

import collections
import itertools
import math
import re
import unicodedata
from statistics import NormalDist

import numpy as np

# -----------------------------------------------------------------------------
# words and scripts


# A word contains the marks and joiners of Indic scripts, which \w leaves out. In scripts without spaces between words,
# such as Thai and Chinese, each letter counts as a word.
MARKS = ''.join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] == 'M')
UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff'
WORD = re.compile(rf'[{UNSPACED}][{MARKS}]*|[\w{MARKS}\u200c\u200d]+')
BASE = np.uint64(0x9e3779b97f4a7c15)  # of polynomial hashes; any large odd number


def count_scripts(text):
    """'मेरा dog' -> Counter({'DEVANAGARI': 4, 'LATIN': 3}): letters and marks by the first word of their Unicode name."""
    counts = collections.Counter()
    for char, n in collections.Counter(text).items():
        script = unicodedata.name(char, '').split(' ')[0]
        is_letter = unicodedata.category(char)[0] in 'LM'
        if is_letter and script not in ('', 'COMBINING', 'VARIATION', 'ZERO'):  # these marks occur in any script
            counts[script] += n
    return counts


class Words:
    """The words of several texts as one array of hashes.

    hashes: (words,) uint64. text_of: (words,) the number of the text that contains the word. lengths: (texts,) in words.
    """

    def __init__(self, texts):
        rows = []
        for text in texts:
            words = WORD.findall(text.lower())
            rows.append(np.array([hash(word) for word in words], np.int64))
        self.hashes = np.concatenate(rows).view(np.uint64)
        self.lengths = np.array([len(row) for row in rows])
        self.text_of = np.repeat(np.arange(len(rows)), self.lengths)
        self.ends = np.repeat(np.cumsum(self.lengths), self.lengths)  # (words,) where the text of each word ends

    def start_runs(self):
        """Runs of no words, which extend_runs extends -> places, keys: one for each word."""
        return np.arange(len(self.hashes)), np.zeros(len(self.hashes), np.uint64)

    def extend_runs(self, places, keys, n):
        """Extend runs of n - 1 words by one word -> places, keys of the runs that stay inside their text.

        places: (runs,) the first word of each run. keys: (runs,) its hash, a polynomial modulo 2^64
        (Karp and Rabin 1987, "Efficient randomized pattern-matching algorithms").
        """
        inside = places + n <= self.ends[places]
        keys = keys[inside]
        places = places[inside]
        return places, keys * BASE + self.hashes[places + n - 1]

    def ngrams(self, n):
        """All runs of n words inside one text -> (texts, keys): the text of each run and its hash, in order."""
        places, keys = self.start_runs()
        for length in range(1, n + 1):
            places, keys = self.extend_runs(places, keys, length)
        return self.text_of[places], keys

    def split(self, texts, values):
        """Split values by their text (ascending numbers of texts) -> a list with one array for each text."""
        return np.split(values, np.searchsorted(texts, np.arange(1, len(self.lengths))))


def longest_runs(ours, theirs):
    """For each word of ours: how many words from here on appear in this order in a text of theirs. -> (words,)

    A run of n words can only match where a run of n - 1 words did, so both sides shrink with every n.
    """
    longest = np.zeros(len(ours.hashes), np.int64)
    places, keys = ours.start_runs()
    their_places, their_keys = theirs.start_runs()
    for n in itertools.count(1):
        places, keys = ours.extend_runs(places, keys, n)
        their_places, their_keys = theirs.extend_runs(their_places, their_keys, n)
        common = np.isin(their_keys, keys)
        their_places = their_places[common]
        their_keys = their_keys[common]
        common = np.isin(keys, their_keys)
        places = places[common]
        keys = keys[common]
        if not len(places):
            return longest
        longest[places] = n


def count_shared_bigrams(ours, theirs):
    """Yield for each text of ours (counts, n): how many of its n different word pairs each text of theirs contains.

    counts: (texts of theirs,). They come from an inverted index: for each word pair of ours, the texts that contain it.
    """
    n_texts = len(theirs.lengths)
    our_texts, our_keys = ours.ngrams(2)
    their_texts, their_keys = theirs.ngrams(2)
    pairs, pair_of = np.unique(our_keys, return_inverse=True)  # the pairs of ours, numbered
    common = np.isin(their_keys, pairs)
    pair_numbers = np.searchsorted(pairs, their_keys[common])
    entries = np.sort(pair_numbers * n_texts + their_texts[common])
    entries = entries[np.diff(entries, prepend=-1) > 0]  # each once; np.unique is many times slower here
    index = entries % n_texts  # the texts that contain pair i are index[bounds[i]:bounds[i + 1]]
    bounds = np.searchsorted(entries, np.arange(len(pairs) + 1) * n_texts)
    for own_pairs in ours.split(our_texts, pair_of):
        own_pairs = np.unique(own_pairs)
        matches = [index[:0]]
        for pair in own_pairs:
            matches.append(index[bounds[pair]:bounds[pair + 1]])
        yield np.bincount(np.concatenate(matches), minlength=n_texts), len(own_pairs)


# -----------------------------------------------------------------------------
# measures of stories


def fraction(part, whole):
    return float(part / whole) if whole else math.nan


def measure_text(stories, script):
    """Start story['measures'] of each story. script: the one that letters should be in, such as 'DEVANAGARI'.

    repeated_4: the fraction of 4-grams that the story contains earlier, too (Welleck et al. 2020, "Neural Text
    Generation with Unlikelihood Training").
    """
    words = Words([story['continuation'] for story in stories])
    fourgrams = words.split(*words.ngrams(4))
    for story, n_words, grams in zip(stories, words.lengths, fourgrams):
        letters = count_scripts(story['continuation'])
        measures = {'words': int(n_words), 'ended': math.nan, 'opening_kept': math.nan}
        if story['ended'] is not None:
            measures['ended'] = float(story['ended'] == 'eos')
        if story['prompt']:
            measures['opening_kept'] = float(story['kept'])
        measures['right_script'] = fraction(letters[script], letters.total())
        measures['repeated_4'] = fraction(len(grams) - len(np.unique(grams)), len(grams))
        story['measures'] = measures


def measure_diversity(stories):
    """How different the stories of one model are -> {measure: number, or None where there is nothing to measure}

    distinct_n: different n-grams over all n-grams (Li et al. 2016, "A Diversity-Promoting Objective Function"). It falls
    with the number of words. self_rouge2: 2 |A ∩ B| / (|A| + |B|) for the sets A and B of word pairs of two stories, the
    mean over all pairs of stories (Eldan and Li 2023, "TinyStories").
    """
    words = Words([story['continuation'] for story in stories])
    diversity = {}
    for n in (1, 2, 3):
        _, keys = words.ngrams(n)
        diversity[f'distinct_{n}'] = len(np.unique(keys)) / len(keys) if len(keys) else None
    bigrams = words.split(*words.ngrams(2))
    sizes = np.array([len(np.unique(grams)) for grams in bigrams])
    similarities = []
    for counts, n in count_shared_bigrams(words, words):
        if n:
            similarity = (2 * counts / np.maximum(1, n + sizes)).sum()
            similarities.append(similarity - 1)  # without the story itself
    diversity['self_rouge2'] = None
    if similarities and len(stories) > 1:
        diversity['self_rouge2'] = float(np.mean(similarities)) / (len(stories) - 1)
    return diversity


def measure_copying(stories, batches, ngrams):
    """Compare each story with all training stories (Eldan and Li 2023, "TinyStories") -> more of story['measures'].

    batches: lists of training stories (str); one list is in memory at a time. ngrams: the lengths n of copied_n.
    copied_n: the fraction of n-grams that a training story contains. longest_copied: the longest such run of words.
    copied_whole: 1 if that is the whole continuation. nearest_rouge2: the largest fraction of its word pairs that one
    training story contains (the precision of ROUGE-2); story['nearest'] is that training story.
    """
    ours = Words([story['continuation'] for story in stories])
    longest = np.zeros(len(ours.hashes), np.int64)
    n_pairs = np.zeros(len(stories), np.int64)
    n_shared = np.zeros(len(stories), np.int64)
    for story in stories:
        story['nearest'] = ''
    for texts in batches:
        theirs = Words(texts)
        longest = np.maximum(longest, longest_runs(ours, theirs))
        for i, (counts, n) in enumerate(count_shared_bigrams(ours, theirs)):
            n_pairs[i] = n
            best = counts.argmax()
            if counts[best] > n_shared[i]:
                n_shared[i] = counts[best]
                stories[i]['nearest'] = texts[best]
    runs_of_stories = ours.split(ours.text_of, longest)
    for i, (story, runs) in enumerate(zip(stories, runs_of_stories)):
        n_words = len(runs)
        measures = story['measures']
        for n in ngrams:
            n_runs = max(0, n_words - n + 1)
            measures[f'copied_{n}'] = fraction((runs[:n_runs] >= n).sum(), n_runs)
        measures['copied_whole'] = float(runs[0] == n_words) if n_words else math.nan
        measures['longest_copied'] = int(runs.max(initial=0))
        measures['nearest_rouge2'] = fraction(n_shared[i], n_pairs[i])


# -----------------------------------------------------------------------------
# statistics

SEED = 1337  # the same data give the same intervals and p-values


def drop_missing(values, clusters):
    """values (n,) that are not nan, and their clusters (n,)"""
    values = np.asarray(values, float)
    present = ~np.isnan(values)
    return values[present], clusters[present]


def resample_means(values, clusters, seed=SEED):
    """Bootstrap: the means of 4,000 draws, with replacement, of whole clusters -> (4000,), the number of clusters

    A cluster holds the stories of one prompt. They are alike, so they are drawn together (Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", 3.8).
    """
    rng = np.random.default_rng(seed)
    _, cluster_of = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster_of, values)
    counts = np.bincount(cluster_of)
    means = []
    for _ in range(8):  # 500 draws at a time, for memory
        draws = rng.integers(len(sums), size=(500, len(sums)))
        means.append(sums[draws].sum(1) / counts[draws].sum(1))
    return np.concatenate(means), len(sums)


def interval(resampled, n):
    """The 95 % interval from resampled statistics of n clusters -> (low, high), or (None, None) if n is 1.

    Percentiles, widened so that they cover like Student's t for few clusters (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", 5.3).
    """
    if n < 2 or not len(resampled):
        return None, None
    normal = NormalDist()
    z = normal.inv_cdf(0.975)
    # the quantile of Student's t as a series in 1 / degrees of freedom (Abramowitz and Stegun 1964, 26.7.5)
    t = z + (z**3 + z) / (4 * (n - 1))
    t += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1)**2)
    tail = normal.cdf(-t * math.sqrt(n / (n - 1)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def estimate(values, clusters):
    """The mean with its 95 % bootstrap interval -> {'mean', 'low', 'high', 'n'}, or None without values.

    values: (n,) floats, nan for missing ones. clusters: (n,) ints, equal for values that belong together.
    low and high are None if there is only one cluster.
    """
    values, clusters = drop_missing(values, clusters)
    if not len(values):
        return None
    low, high = interval(*resample_means(values, clusters))
    return {'mean': float(values.mean()), 'low': low, 'high': high, 'n': len(values)}


def ratio(values, clusters, reference, reference_clusters):
    """The mean of values over the mean of reference, in the form of `estimate`; None if the latter is 0 or unknown.

    Both are resampled independently. Draws in which the reference's mean is 0 are left out.
    """
    values, clusters = drop_missing(values, clusters)
    reference, reference_clusters = drop_missing(reference, reference_clusters)
    if not len(values) or not len(reference) or reference.mean() <= 0:
        return None
    means, n = resample_means(values, clusters)
    reference_means, n_reference = resample_means(reference, reference_clusters, SEED + 1)
    usable = reference_means > 0
    low, high = interval(means[usable] / reference_means[usable], min(n, n_reference))
    mean = values.mean() / reference.mean()
    return {'mean': float(mean), 'low': low, 'high': high, 'n': len(values)}


def permutation_p(differences, n_permutations=10_000):
    """The two-sided p-value of the mean of paired differences (n,) (Fisher 1935, "The Design of Experiments", 21).

    If two models are equally good, the sign of each difference is random. p is the fraction of random signs with a mean
    as large as the observed one: of all signs if they are few, else of a sample that includes the observed signs
    (Phipson and Smyth 2010, "Permutation P-values Should Never Be Zero").
    """
    n = len(differences)
    observed = abs(differences.sum()) * (1 - 1e-9)  # equal sums may differ by rounding
    if 2**n <= n_permutations:
        signs = np.array(list(itertools.product([1, -1], repeat=n)))  # (2^n, n)
        return float((abs(signs @ differences) >= observed).mean())
    rng = np.random.default_rng(SEED)
    count = 1
    for _ in range(n_permutations // 1000):
        signs = rng.integers(2, size=(1000, n)) * 2.0 - 1
        count += int((abs(signs @ differences) >= observed).sum())
    return count / (1 + n_permutations)


def holm(p):
    """Adjust the p-values of several tests (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure")."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * factors))
    return adjusted.tolist()


def agreement(units):
    """How well grades of the same stories agree, by Krippendorff's α for interval data.

    units: a list with the grades of each story; those with fewer than two grades are left out.
    -> {'alpha', 'low', 'high', 'n', 'same', 'mean_difference'}, or None with fewer than two units. alpha = 1 - variance
    within stories / variance of all grades (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", written with
    variances), None if all grades are equal; its interval is a bootstrap over the units. same and mean_difference are
    about the first two grades of each unit.
    """
    units = [np.array(unit, float) for unit in units if len(unit) > 1]
    if len(units) < 2:
        return None
    rows = []
    for unit in units:
        rows.append([len(unit), unit.sum(), (unit**2).sum(), len(unit) * unit.var(ddof=1)])
    rows = np.array(rows)

    def alpha(picked):
        n, total, squares, within = rows[picked].sum(0)
        variance = (squares - total**2 / n) / (n - 1)
        if variance < 1e-9:  # all grades are equal
            return math.nan
        return float(1 - within / n / variance)

    value = alpha(np.arange(len(rows)))
    rng = np.random.default_rng(SEED)
    resampled = np.array([alpha(rng.integers(len(rows), size=len(rows))) for _ in range(1000)])
    low, high = interval(resampled[~np.isnan(resampled)], len(rows))
    differences = np.array([abs(unit[0] - unit[1]) for unit in units])
    return {'alpha': None if math.isnan(value) else value, 'low': low, 'high': high, 'n': len(rows),
            'same': float((differences == 0).mean()), 'mean_difference': float(differences.mean())}
