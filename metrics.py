"""
Measures of stories that need no judge, and the statistics of grades. They need numpy and files.py.

    measure_text(stories, script)               length, repetition and script of each story
    measure_diversity(stories)                  how different the stories of a model are
    measure_copying(stories, batches)           how much of each story is copied from training stories
    families(prompts)                           which prompts are near-copies of one another
    estimate, ratio                             means with 95 % bootstrap intervals
    permutation_p, holm                         is one model better than another
    agreement                                   do judges agree

A story is a dict. The measures read its `continuation` (what the model wrote), `opening`, `prompt`, `kept` and `ended`,
and write story['measures'], a dict of numbers; nan means that there is nothing to measure.
"""

import itertools
import math
import re
import statistics
import unicodedata

import numpy as np

from files import count_scripts

# -----------------------------------------------------------------------------
# words and scripts

# A word contains the marks and joiners of Indic scripts, which \w leaves out. In scripts without spaces between words,
# such as Thai and Chinese, each letter counts as a word.
MARKS = ''.join(char for char in map(chr, range(0x10000)) if unicodedata.category(char)[0] == 'M')
UNSPACED = '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff'
WORD = re.compile(rf'[{UNSPACED}][{MARKS}]*|[\w{MARKS}\u200c\u200d]+')
# A sentence ends at a mark with a space after it, at a mark of Chinese and Japanese, or with its paragraph.
SENTENCE_END = re.compile(r'(?<=[.!?।॥…۔؟])["\'”’»)]*\s+|(?<=[。！？])(?![。！？])["”’」』]*|\n\s*\n')
BASE = np.uint64(0x9e3779b97f4a7c15)  # of polynomial hashes; any large odd number


def sentences_of(text):
    """The sentences of a text, without quotation marks around them."""
    sentences = [sentence.strip(' \n"\'“”‘’«»()「」『』') for sentence in SENTENCE_END.split(text)]
    return [sentence for sentence in sentences if sentence]


def generated_sentences(story):
    """The sentences of a story that begin after its opening. The model did not choose how the others begin."""
    opening = story['opening'] if story['kept'] else ''
    sentences = sentences_of(opening + story['continuation'])
    return sentences[len(sentences_of(opening)):]


class Words:
    """The words of several texts in one array of hashes.

    hashes: (words,) uint64. text_of: (words,) the number of the text that contains each word. ends: (words,) where that
    text ends in the array. lengths: (texts,) the number of words of each text.
    """

    def __init__(self, texts):
        rows = []
        for text in texts:
            words = WORD.findall(text.lower())
            rows.append(np.array([hash(word) for word in words], np.int64))
        self.hashes = np.concatenate(rows).view(np.uint64)
        self.lengths = np.array([len(row) for row in rows])
        self.text_of = np.repeat(np.arange(len(rows)), self.lengths)
        self.ends = np.repeat(np.cumsum(self.lengths), self.lengths)

    def runs(self, n):
        """All runs of n words -> (runs,) the position of the first word of each, (runs,) hashes"""
        positions = np.arange(len(self.hashes))
        hashes = np.zeros(len(self.hashes), np.uint64)
        for length in range(1, n + 1):
            positions, hashes = self.extend(positions, hashes, length)
        return positions, hashes

    def extend(self, positions, hashes, n):
        """Extend runs of n - 1 words to n words; those that would cross the end of their text are left out.

        A hash is a polynomial of the hashes of the words modulo 2^64 (Karp and Rabin 1987, "Efficient randomized
        pattern-matching algorithms").
        """
        inside = positions + n <= self.ends[positions]
        positions = positions[inside]
        return positions, hashes[inside] * BASE + self.hashes[positions + n - 1]

    def split(self, positions, values):
        """Split values, which belong to these ascending positions -> a list with an array for each text"""
        bounds = np.searchsorted(positions, np.cumsum(self.lengths)[:-1])
        return np.split(values, bounds)

    def count_different(self, n):
        """(texts,) the number of different n-grams of each text"""
        positions, hashes = self.runs(n)
        grams = self.split(positions, hashes)
        return np.array([len(np.unique(text_grams)) for text_grams in grams])


def longest_runs(words, corpus):
    """For each word: how many words from here on appear in the same order in a text of the corpus. -> (words,)

    A run of n words can only match where a run of n - 1 words did, so both sides shrink with every n.
    """
    longest = np.zeros(len(words.hashes), np.int64)
    positions, hashes = words.runs(0)
    corpus_positions, corpus_hashes = corpus.runs(0)
    for n in itertools.count(1):
        positions, hashes = words.extend(positions, hashes, n)
        corpus_positions, corpus_hashes = corpus.extend(corpus_positions, corpus_hashes, n)
        common = np.isin(corpus_hashes, hashes)
        corpus_positions = corpus_positions[common]
        corpus_hashes = corpus_hashes[common]
        common = np.isin(hashes, corpus_hashes)
        positions = positions[common]
        hashes = hashes[common]
        if not len(positions):
            return longest
        longest[positions] = n


def count_shared(words, corpus, n):
    """Yield for each text (counts, size): how many of its `size` different n-grams each text of the corpus contains.

    counts: (texts of the corpus,). It uses an inverted index: for each n-gram, the corpus texts that contain it.
    """
    n_texts = len(corpus.lengths)
    positions, hashes = words.runs(n)
    corpus_positions, corpus_hashes = corpus.runs(n)
    grams, gram_numbers = np.unique(hashes, return_inverse=True)
    common = np.isin(corpus_hashes, grams)
    corpus_gram_numbers = np.searchsorted(grams, corpus_hashes[common])
    corpus_texts = corpus.text_of[corpus_positions[common]]

    # 1) the index: the corpus texts that contain n-gram i are index[bounds[i]:bounds[i + 1]]
    entries = np.sort(corpus_gram_numbers * n_texts + corpus_texts)
    is_new = np.diff(entries, prepend=-1) > 0  # np.unique would be many times slower
    entries = entries[is_new]
    index = entries % n_texts
    bounds = np.searchsorted(entries, np.arange(len(grams) + 1) * n_texts)

    # 2) look up the n-grams of each text
    for numbers in words.split(positions, gram_numbers):
        numbers = np.unique(numbers)
        matches = [index[:0]]
        for i in numbers:
            matches.append(index[bounds[i]:bounds[i + 1]])
        yield np.bincount(np.concatenate(matches), minlength=n_texts), len(numbers)


def families(texts):
    """Texts that are linked by near-copies have the same number -> (texts,) ints

    Two texts are near-copies if they share at least 0.4 of their trigrams of words (Jaccard).
    """
    words = Words(texts)
    sizes = words.count_different(3)
    family_of = np.arange(len(texts))
    for i, (shared, size) in enumerate(count_shared(words, words, 3)):
        union = sizes + size - shared
        is_near = (shared > 0) & (shared >= 0.4 * union)
        linked = family_of[is_near]
        is_linked = np.isin(family_of, linked)
        family_of[is_linked] = family_of[i]
    return family_of


# -----------------------------------------------------------------------------
# measures of stories


def fraction(part, whole):
    """part / whole, nan if whole is 0"""
    return float(part / whole) if whole else math.nan


def measure_text(stories, script):
    """Start story['measures'] of each story. script: the expected one, such as 'DEVANAGARI'.

    repeated_4: the fraction of 4-grams that the story contains earlier, too (Welleck et al. 2020, "Neural Text
    Generation with Unlikelihood Training").
    """
    words = Words([story['continuation'] for story in stories])
    for story, n_words, n_different in zip(stories, words.lengths, words.count_different(4)):
        letters = count_scripts(story['continuation'])
        n_fourgrams = max(0, n_words - 3)
        measures = {'words': int(n_words)}
        measures['ended'] = math.nan if story['ended'] is None else float(story['ended'] == 'eos')
        measures['opening_kept'] = float(story['kept']) if story['prompt'] else math.nan
        measures['right_script'] = fraction(letters[script], letters.total())
        measures['repeated_4'] = fraction(n_fourgrams - n_different, n_fourgrams)
        story['measures'] = measures


def measure_diversity(stories):
    """How different the stories of one model are -> {measure: number, or None where there is nothing to measure}

    distinct_n: different n-grams over all n-grams (Li et al. 2016, "A Diversity-Promoting Objective Function"). It
    decreases with the number of words. self_rouge2: 2 |A ∩ B| / (|A| + |B|) for the sets A and B of word pairs of two
    stories, the mean over all pairs of stories (Eldan and Li 2023, "TinyStories").
    """
    words = Words([story['continuation'] for story in stories])
    diversity = {}
    for n in (1, 2, 3):
        _, hashes = words.runs(n)
        diversity[f'distinct_{n}'] = len(np.unique(hashes)) / len(hashes) if len(hashes) else None

    sizes = words.count_different(2)
    n_others = len(stories) - 1
    similarities = []
    for counts, size in count_shared(words, words, 2):
        if size and n_others:
            similarity = 2 * counts / (size + sizes)  # (stories,), 1 to the story itself
            similarities.append((similarity.sum() - 1) / n_others)
    diversity['self_rouge2'] = statistics.fmean(similarities) if similarities else None
    return diversity


def measure_copying(stories, batches, ngrams=(4, 8, 16)):
    """Compare each story with all training stories (Eldan and Li 2023, "TinyStories") -> more of story['measures']

    batches: lists of training stories (str); one list is in memory at a time. ngrams: the lengths n of copied_n.
    copied_n: the fraction of n-grams that a training story contains. longest_copied: the longest such run of words.
    copied_whole: 1 if that is the whole continuation. copied_sentences: the fraction of generated_sentences that stand
    in a training story, word for word. nearest_rouge2: the largest fraction of the continuation's word pairs that one
    training story contains (the precision of ROUGE-2); story['nearest'] is that training story.
    """
    words = Words([story['continuation'] for story in stories])
    longest = np.zeros(len(words.hashes), np.int64)
    nearest = [(0.0, '')] * len(stories)  # the fraction, the training story
    sentences = [generated_sentences(story) for story in stories]
    wanted = set(itertools.chain(*sentences))
    known = set()  # those of them that stand in training stories
    for texts in batches:
        for text in texts:
            known.update(wanted.intersection(sentences_of(text)))
        corpus = Words(texts)
        longest = np.maximum(longest, longest_runs(words, corpus))
        for i, (counts, size) in enumerate(count_shared(words, corpus, 2)):
            best = counts.argmax()
            if counts[best]:
                nearest[i] = max(nearest[i], (counts[best] / size, texts[best]))

    for i, runs in enumerate(words.split(np.arange(len(longest)), longest)):  # runs: (words of the story,)
        measures = stories[i]['measures']
        n_words = len(runs)
        for n in ngrams:
            n_grams = max(0, n_words - n + 1)
            measures[f'copied_{n}'] = fraction((runs[:n_grams] >= n).sum(), n_grams)
        measures['copied_whole'] = float(runs[0] == n_words) if n_words else math.nan
        n_known = sum(sentence in known for sentence in sentences[i])
        measures['copied_sentences'] = fraction(n_known, len(sentences[i]))
        measures['longest_copied'] = int(runs.max(initial=0))
        share, stories[i]['nearest'] = nearest[i]
        measures['nearest_rouge2'] = share if n_words > 1 else math.nan


# -----------------------------------------------------------------------------
# statistics

SEED = 1337  # the same data give the same intervals and p-values


def drop_missing(values, clusters):
    """values (n,) that are not nan, and their clusters (n,)"""
    values = np.asarray(values, float)
    present = ~np.isnan(values)
    return values[present], clusters[present]


def resample_means(values, clusters, seed=SEED):
    """Bootstrap: the means of 4,000 samples with replacement of whole clusters -> (4000,), number of clusters

    A cluster holds the stories of one prompt. They are similar, so they are sampled together (Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", 3.8). values: (n,). clusters: (n,) ints.
    """
    rng = np.random.default_rng(seed)
    _, cluster_of = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster_of, values)
    counts = np.bincount(cluster_of)
    n = len(sums)
    means = []
    for _ in range(8):  # 500 samples at a time, which bounds memory
        picked = rng.integers(n, size=(500, n))
        means.append(sums[picked].sum(1) / counts[picked].sum(1))
    return np.concatenate(means), n


def interval(resampled, n):
    """The 95 % interval from resampled statistics of n clusters -> (low, high), or (None, None) if n is 1.

    Percentiles, widened so that they cover like Student's t for few clusters (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", 5.3).
    """
    if n < 2 or not len(resampled):
        return None, None
    normal = statistics.NormalDist()
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
    """The mean of values / the mean of reference, in the form of `estimate`; None if the latter is 0 or unknown.

    Both are resampled independently. Samples in which the reference's mean is 0 are left out.
    """
    values, clusters = drop_missing(values, clusters)
    reference, reference_clusters = drop_missing(reference, reference_clusters)
    if not len(values) or reference.sum() <= 0:
        return None
    means, n = resample_means(values, clusters)
    reference_means, n_reference = resample_means(reference, reference_clusters, SEED + 1)
    usable = reference_means > 0
    ratios = means[usable] / reference_means[usable]
    low, high = interval(ratios, min(n, n_reference))
    mean = values.mean() / reference.mean()
    return {'mean': float(mean), 'low': low, 'high': high, 'n': len(values)}


def permutation_p(differences):
    """The two-sided p-value of the mean of paired differences (n,) (Fisher 1935, "The Design of Experiments", 21).

    If two models are equally good, the sign of each difference is random. p is the fraction of random signs with a mean
    as large as the observed one: of all signs if they are few, else of 10,000 and the observed ones (Phipson and Smyth
    2010, "Permutation P-values Should Never Be Zero").
    """
    n = len(differences)
    observed = abs(differences.sum()) * (1 - 1e-9)  # equal sums may differ by rounding
    if 2**n <= 10_000:
        signs = np.array(list(itertools.product([1, -1], repeat=n)))  # (2^n, n)
        sums = abs(signs @ differences)
        return float((sums >= observed).mean())
    rng = np.random.default_rng(SEED)
    count = 1
    for _ in range(10):  # 1,000 at a time, which bounds memory
        signs = rng.integers(2, size=(1000, n)) * 2.0 - 1
        sums = abs(signs @ differences)
        count += int((sums >= observed).sum())
    return count / 10_001


def holm(p):
    """Adjust the p-values of several tests (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure")."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * factors).clip(max=1)
    return adjusted.tolist()


def agreement(units):
    """How well grades of the same stories agree -> {'alpha', 'low', 'high', 'n', 'same', 'mean_difference'}, or None

    units: a list with the grades of each story. Those with fewer than two grades are left out; two or more are needed.
    alpha: Krippendorff's α for interval data, 1 - variance within stories / variance of all grades (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability", written with variances), with a bootstrap interval over the units;
    None if all grades are equal. same: the fraction of units whose first two grades are equal.
    """
    units = [np.array(unit, float) for unit in units if len(unit) > 1]
    n_units = len(units)
    if n_units < 2:
        return None
    sums = []  # of each unit: the number of grades, their sum, their sum of squares, and n × their variance
    differences = []
    for unit in units:
        n = len(unit)
        sums.append([n, unit.sum(), unit @ unit, n * unit.var(ddof=1)])
        differences.append(float(abs(unit[0] - unit[1])))
    sums = np.array(sums)

    def alpha(sums):
        n, total, squares, within = sums.sum(0)
        variance = (squares - total**2 / n) / (n - 1)
        if variance < 1e-9:
            return None
        return 1 - within / n / variance

    rng = np.random.default_rng(SEED)
    resampled = []
    for _ in range(1000):
        picked = rng.integers(n_units, size=n_units)
        value = alpha(sums[picked])
        if value is not None:
            resampled.append(value)
    low, high = interval(resampled, n_units)
    return {'alpha': alpha(sums), 'low': low, 'high': high, 'n': n_units, 'same': differences.count(0) / n_units,
            'mean_difference': statistics.fmean(differences)}
