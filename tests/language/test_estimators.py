import fractions

import jax
import numpy as np
import pytest

from jaxml.language import (
    bootstrap_unique,
    chao1,
    frequencies,
    good_toulmin,
    good_turing_missing_mass,
    mark_recapture,
    sequential_good_turing,
)

N_SPECIES = N_DRAWS = 20_000
SEEDS = range(5)
NOTHING = np.zeros(0, np.int64)


def distributions(n):
    rank = np.arange(1.0, n + 1)
    weights = {
        "zipf 1": 1 / rank,
        "zipf 0.7": rank**-0.7,
        "uniform": np.ones(n),
        "log-normal 2": np.exp(2 * np.random.default_rng(5).normal(size=n)),
    }
    return {name: w / w.sum() for name, w in weights.items()}


NAMES = tuple(distributions(1))


def test_frequencies():
    assert frequencies(np.array([3, 1, 0, 1])).tolist() == [2, 0, 1]
    assert frequencies(NOTHING).tolist() == []


@pytest.mark.parametrize("name", NAMES)
def test_estimates_on_a_known_distribution(name):
    p = distributions(N_SPECIES)[name]
    mass, twice = [], []
    for seed in SEEDS:
        draws = np.random.default_rng(seed).choice(N_SPECIES, size=2 * N_DRAWS, p=p)
        counts = np.bincount(draws[:N_DRAWS], minlength=N_SPECIES)
        f = frequencies(counts)
        mass.append(good_turing_missing_mass(f) - p[counts == 0].sum())
        truth = np.unique(draws).size
        twice.append((f.sum() + good_toulmin(f, 1.0)) / truth - 1)
        bound = chao1(f)
        assert bound.total <= N_SPECIES + 2 * bound.standard_error
        # A prediction at 2x has a standard error of the square root of the truth (Poisson draws).
        assert abs(twice[-1]) <= 4 / truth**0.5
    assert abs(np.mean(mass)) <= 0.01
    assert abs(np.mean(twice)) <= 0.02


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_extends_good_toulmin(name):
    # Under Poisson draws the expected number of new things is known, given what was seen.
    rates = distributions(2000)[name] * 2000
    draws = np.random.default_rng(0).poisson(rates)
    f = frequencies(draws)
    truth = (1 - np.exp(-4 * rates))[draws == 0].sum()
    assert abs(good_toulmin(f, 4.0) - truth) <= 0.15 * (f.sum() + truth)


def test_good_toulmin_is_its_series():
    f = np.array([50, 20, 0, 6, 1])
    series = -sum(fractions.Fraction(-1, 2) ** k * int(f[k - 1]) for k in range(1, 6))
    assert good_toulmin(f, 0.5) == pytest.approx(float(series))
    assert good_toulmin(f, 0) == 0
    # Smoothed: n = 119, so log3(119 * 9 / 2) / 2 = 2.86 and L is of 2 trials of 2/5.
    n, q = int((np.arange(1, 6) * f).sum()), 2 / 5
    assert n == 119
    weights = [1 - (1 - q) ** 2, q**2]
    assert good_toulmin(f, 3.0) == pytest.approx(3 * weights[0] * 50 - 9 * weights[1] * 20)


def test_expected_frequencies_give_the_expected_unseen():
    # Rate 2 for each of 10^6: f_k is Poisson, and the unseen follow in closed form.
    k = np.arange(1, 31)
    log_factorial = np.cumsum(np.log(k))
    f = np.round(1e6 * np.exp(k * np.log(2) - 2 - log_factorial)).astype(int)
    assert good_toulmin(f, 1.0) == pytest.approx(1e6 * (np.exp(-2) - np.exp(-4)), rel=1e-4)
    assert good_turing_missing_mass(f) == pytest.approx(np.exp(-2), rel=1e-4)
    # Equal rates are the case in which Chao's bound is attained.
    assert chao1(f).total == pytest.approx(1e6, rel=1e-4)
    seen, both = 1 - np.exp(-1), (1 - np.exp(-1)) ** 2
    halves = [round(1e6 * x) for x in (seen, seen, both)]
    assert mark_recapture(*halves) == pytest.approx(1e6, rel=1e-4)


def test_chao1_and_its_error_in_closed_form():
    total, error = chao1(np.array([10, 4, 1]))
    assert total == pytest.approx(15 + 90 / 10)
    # By finite differences of D(f1, f2).
    d = lambda f1, f2: f1 * (f1 - 1) / (2 * (f2 + 1))  # noqa: E731
    h = 1e-5
    by_f1 = (d(10 + h, 4) - d(10 - h, 4)) / (2 * h)
    by_f2 = (d(10, 4 + h) - d(10, 4 - h)) / (2 * h)
    assert error == pytest.approx((9 + 10 * by_f1**2 + 4 * by_f2**2) ** 0.5)


def test_sequential_good_turing_keeps_its_rules():
    counts = np.array([1, 1, 5, 0, 2])
    unique = sequential_good_turing(jax.random.key(0), counts, 500)
    rises = np.diff(unique, prepend=4)
    assert set(rises.tolist()) == {0, 1}
    np.testing.assert_array_equal(unique, sequential_good_turing(jax.random.key(0), counts, 500))
    # Only singletons: the first draw is new for certain. None: never.
    assert sequential_good_turing(jax.random.key(1), np.ones(9, int), 1).tolist() == [10]
    assert set(sequential_good_turing(jax.random.key(1), np.full(9, 2), 50).tolist()) == {9}


def test_sequential_good_turing_follows_its_mean_field():
    # With p = f1/n: df1/dn = p - (1 - p) p = p^2, so dp/dn = -p (1 - p) / n, and the odds of a new
    # thing fall as 1/n. New things are the integral of p over further draws.
    n, r, extra = 40_000, 0.4, 80_000
    counts = np.concatenate([np.ones(int(n * r), int), np.full(int(n * (1 - r)) // 3, 3)])
    n = counts.sum()
    m = n + np.arange(extra)
    odds = r / (1 - r) * n / m
    wanted = (odds / (1 + odds)).sum()
    unique = sequential_good_turing(jax.random.key(0), counts, extra)
    assert unique[-1] - counts.size == pytest.approx(wanted, rel=0.02)


def test_nothing_seen_and_nothing_seen_twice():
    key = jax.random.key(0)
    assert good_turing_missing_mass(NOTHING) is None
    assert good_toulmin(NOTHING, 2.0) == 0
    assert chao1(NOTHING) == (0, 0)
    assert mark_recapture(5, 7, 0) is None
    assert sequential_good_turing(key, NOTHING, 3).tolist() == [0, 0, 0]
    empty = bootstrap_unique(key, NOTHING, NOTHING, lambda f: good_toulmin(f, 1.0), n_generations=3)
    assert empty == (0, 0, 0)

    once = np.array([4])
    assert good_turing_missing_mass(once) == 1
    assert chao1(once).total == 4 + 6
    assert np.isfinite(chao1(once).standard_error)
    assert good_toulmin(once, 3.0) <= 12
    # Terms of this size overflow.
    assert np.isfinite(good_toulmin(np.bincount([500, 499]), 9.0, smooth=False))


@pytest.mark.parametrize("name", NAMES)
def test_interval_covers_what_twice_the_draws_show(name):
    n = 1000
    p = distributions(n)[name]
    covered = 0
    for seed in range(20):
        draws = np.random.default_rng(seed).choice(n, size=2 * n, p=p)
        interval = bootstrap_unique(
            jax.random.key(seed), np.arange(n), draws[:n], lambda f: good_toulmin(f, 1.0),
            n_generations=n, n_resamples=100,
        )  # fmt: skip
        covered += interval.low <= np.unique(draws).size <= interval.high
    assert covered >= 16


def test_interval_is_wider_when_hits_come_in_clumps():
    rng = np.random.default_rng(0)
    documents = rng.integers(200, size=150)
    things = (10 * documents[:, None] + np.arange(10)).ravel()
    widths = []
    for generation in (np.arange(1500), np.repeat(np.arange(150), 10)):
        interval = bootstrap_unique(
            jax.random.key(0), generation, things, lambda f: good_toulmin(f, 1.0),
            n_generations=generation[-1] + 1,
        )  # fmt: skip
        assert interval.low <= interval.estimate <= interval.high
        widths.append(interval.high - interval.low)
    # Ten windows a hit: the standard deviation is that of the hits, times ten.
    assert 2.2 < widths[1] / widths[0] < 4.5


def test_bad_input():
    key, f = jax.random.key(0), np.array([1])
    new = lambda f: 0.0  # noqa: E731
    for match, call in {
        "counts must be integers": lambda: frequencies(np.array([0.5])),
        "f must be frequencies": lambda: chao1(np.array([-1])),
        "t must be": lambda: good_toulmin(f, -1.0),
        "smooth=True needs t > 1": lambda: good_toulmin(f, 1.0, smooth=True),
        r"n_both must lie in 0\.\.2": lambda: mark_recapture(2, 5, 3),
        "n_extra": lambda: sequential_good_turing(key, f, -1),
        r"both be \[h\]": lambda: bootstrap_unique(key, f, NOTHING, new, n_generations=2),
        r"generation must lie in 0\.\.0": lambda: bootstrap_unique(key, f, f, new, n_generations=1),
        "level must lie": lambda: bootstrap_unique(key, f, f, new, n_generations=2, level=1),
        "n_resamples at": lambda: bootstrap_unique(key, f, f, new, n_generations=2, n_resamples=1),
        "thing must not": lambda: bootstrap_unique(key, f, -f, new, n_generations=2),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
