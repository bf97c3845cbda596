"""
Statistics of grades, in numpy alone: bootstrap intervals by cluster, a paired permutation test, Holm's correction,
Krippendorff's α.

An estimate is a dict of mean, low and high (the 95 % interval, None where it cannot be told) and n, the values in it.
"""

import math
from statistics import NormalDist

import numpy as np

SEED = 1337  # the same data give the same intervals and p-values


def resampled_means(values, clusters, n_resamples=4000, seed=SEED):
    """The means of n_resamples draws, with replacement, of whole clusters. values, clusters: (n,) -> (n_resamples,)

    Drawing prompts with all their stories respects that stories of one prompt are alike (Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", 3.8).
    """
    rng = np.random.default_rng(seed)
    _, place = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    draws = (rng.integers(len(sums), size=(min(500, n_resamples - i), len(sums))) for i in range(0, n_resamples, 500))
    return np.concatenate([sums[draw].sum(1) / counts[draw].sum(1) for draw in draws])


def interval(resampled, n):
    """The 95 % interval from a statistic of n clusters, resampled -> (low, high), or (None, None) where n is 1.

    Percentiles, moved outward so that they cover as Student's t does for few clusters (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", 5.3); t by its expansion (Abramowitz and Stegun 1964, 26.7.5).
    """
    if n < 2 or not len(resampled):
        return None, None
    z = NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1)**2)
    share = NormalDist().cdf(-t * math.sqrt(n / (n - 1)))
    return tuple(map(float, np.quantile(resampled, [share, 1 - share])))


def estimate(values, clusters):
    """The mean of values (n,), of which nan are left out, clusters (n,) saying which belong together -> an estimate, or None"""
    values = np.asarray(values, float)
    there = ~np.isnan(values)
    if not there.any():
        return None
    values, clusters = values[there], clusters[there]
    low, high = interval(resampled_means(values, clusters), len(np.unique(clusters)))
    return {'mean': float(values.mean()), 'low': low, 'high': high, 'n': len(values)}


def ratio(values, clusters, reference, reference_clusters):
    """The mean of some values over that of others, both resampled, each by itself -> an estimate, or None where there is none

    Draws in which the others' mean is 0 are left out.
    """
    (values, clusters), (reference, reference_clusters) = ((v[~np.isnan(v)], c[~np.isnan(v)]) for v, c in ((values, clusters), (reference, reference_clusters)))
    if not len(values) or not len(reference) or reference.mean() <= 0:
        return None
    with np.errstate(divide='ignore', invalid='ignore'):
        ratios = resampled_means(values, clusters) / resampled_means(reference, reference_clusters, seed=SEED + 1)
    low, high = interval(ratios[np.isfinite(ratios)], min(len(np.unique(clusters)), len(np.unique(reference_clusters))))
    return {'mean': float(values.mean() / reference.mean()), 'low': low, 'high': high, 'n': len(values)}


def permutation_p(differences, n_permutations=10_000):
    """Two-sided p-value of the mean of paired differences (n,) under random signs (Fisher 1935, "The Design of Experiments", 21).

    All signs where they are few enough, else n_permutations of them with the observed ones among them (Phipson and Smyth
    2010, "Permutation P-values Should Never Be Zero").
    """
    n = len(differences)
    observed = abs(differences.sum()) * (1 - 1e-9)  # equal sums may differ by rounding
    if 2**n <= n_permutations:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((abs(signs @ differences) >= observed).mean())
    rng, count = np.random.default_rng(SEED), 0
    for i in range(0, n_permutations, 1000):
        signs = rng.integers(2, size=(min(1000, n_permutations - i), n)) * 2.0 - 1
        count += int((abs(signs @ differences) >= observed).sum())
    return (1 + count) / (1 + n_permutations)


def holm(p):
    """p-values of one family -> adjusted ones (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure")"""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def krippendorff_alpha(units):
    """Krippendorff's α for interval data, with a bootstrap interval over the units -> {'alpha', 'low', 'high', 'n'}, or None

    units: for each story the list of its grades; those with fewer than two do not count. 1 - observed / expected
    disagreement (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"), where the squared differences over all
    ordered pairs of m values are 2 (m Σx² - (Σx)²). alpha is None where all grades are the same.
    """
    units = [np.asarray(unit, float) for unit in units if len(unit) > 1]
    if len(units) < 2:
        return None
    m, s, q = (np.array([f(unit) for unit in units]) for f in (len, np.sum, lambda unit: (unit**2).sum()))
    within = (m * q - s**2) / (m - 1)

    def alpha(chosen):
        n = m[chosen].sum(-1)
        expected = (n * q[chosen].sum(-1) - s[chosen].sum(-1)**2) / (n - 1)
        with np.errstate(divide='ignore', invalid='ignore'):
            return np.where(expected > 1e-9, 1 - within[chosen].sum(-1) / expected, np.nan)

    value = float(alpha(np.arange(len(units))))
    resampled = alpha(np.random.default_rng(SEED).integers(len(units), size=(1000, len(units))))
    low, high = interval(resampled[~np.isnan(resampled)], len(units)) if not math.isnan(value) else (None, None)
    return {'alpha': None if math.isnan(value) else value, 'low': low, 'high': high, 'n': len(units)}
