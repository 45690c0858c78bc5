"""SPECTRE's filter against closed forms, planted outliers and plain numpy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.backdoor import aggregators, representation_filter, shadow, spectre
from jaxml.backdoor.spectre import (
    choose_k,
    fit_mahalanobis,
    fit_norm,
    fit_pca,
    fit_spectre,
    identify_target_label,
    keep_lowest,
    pca_project,
    que_scores,
    robust_covariance,
    spectre_filter,
)

ALL = {"n_passes": 12, "n_power": 12}


def planted(seed, direction, *, n=1500, m=40, d=64, rank=24, shift=7.0):
    """Rows of falling variance with outliers shifted along one direction, in random order."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(d, rank)))
    sd = 10 * 0.85 ** np.arange(rank)
    z = rng.normal(size=(n + m, rank)) * sd
    z[n:, direction] += shift * sd[direction]
    h = z @ basis.T + 0.05 * rng.normal(size=(n + m, d))
    order = rng.permutation(n + m)
    return h[order].astype(np.float32), (np.arange(n + m) >= n)[order]


def recall(keep, bad):
    return (~keep & bad).sum() / bad.sum()


@pytest.mark.parametrize("d", [2, 20, 200])
def test_que_scores_have_their_closed_form(d):
    rng = np.random.default_rng(d)
    x = rng.normal(size=(400, d))
    values, vectors = np.linalg.eigh(x.T @ x / 400)
    white = x @ (vectors / np.sqrt(values)) @ vectors.T  # its second moment is I
    u = rng.normal(size=d)
    u /= np.linalg.norm(u)
    score = jax.jit(que_scores)
    for c in (0.01, 0.7, 50.0):
        h = white + (np.sqrt(1 + c) - 1) * np.outer(white @ u, u)
        for alpha in (0.0, 1.0, 4.0, 16.0):
            weight = np.expm1(alpha)
            expected = (np.square(h).sum(1) + weight * (h @ u) ** 2) / (d + weight)
            found = score(h.astype(np.float32), alpha=alpha)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_nothing_to_see_gives_finite_scores():
    flat = jnp.tile(jnp.eye(3, dtype=jnp.float32) * 3**0.5, (4, 1))  # S = I exactly
    np.testing.assert_allclose(que_scores(flat), np.ones(12), rtol=1e-6)
    rng = np.random.default_rng(0)
    for n, k in ((40, 1), (5, 12)):
        assert np.isfinite(que_scores(jnp.asarray(rng.normal(size=(n, k)), jnp.float32))).all()
    constant = jnp.ones((12, 5))
    assert np.isfinite(fit_spectre(constant, 2, k=3)(constant)).all()


@pytest.mark.parametrize("seed", range(2))
def test_outliers_of_low_variance_are_found_where_pca_is_blind(seed):
    low, bad = planted(seed, 16)
    top, bad_top = planted(seed, 0)
    keep = {m: spectre_filter(low, n_outliers=40, k=24, method=m).keep for m in spectre.METHODS}
    assert recall(keep["spectre"], bad) >= 0.98
    assert recall(keep["pca"], bad) <= 0.15 and recall(keep["norm"], bad) <= 0.15
    # The plain covariance has been widened along the outliers' direction: it sees them half.
    assert recall(keep["mahalanobis"], bad) < 0.9
    for method in ("spectre", "pca"):
        found = spectre_filter(top, n_outliers=40, k=24, method=method)
        assert recall(found.keep, bad_top) >= 0.98
    assert all((~kept).sum() == 60 for kept in keep.values())


@pytest.mark.heavy
def test_the_published_size_of_the_problem():
    for seed in range(5):
        for direction in (40, 0):
            rng = np.random.default_rng(seed)
            basis, _ = np.linalg.qr(rng.normal(size=(256, 64)))
            sd = 10 * 0.93 ** np.arange(64)
            z = rng.normal(size=(5125, 64)) * sd
            z[5000:, direction] += 7 * sd[direction]
            h = (z @ basis.T + 0.05 * rng.normal(size=(5125, 256))).astype(np.float32)
            order = rng.permutation(5125)
            bad = order >= 5000
            found = {
                method: recall(
                    spectre_filter(h[order], n_outliers=125, k=64, method=method).keep, bad
                )
                for method in ("spectre", "pca")
            }
            assert found["spectre"] >= 0.98
            assert (found["pca"] <= 0.15) == (direction == 40)


def test_the_robust_covariance_costs_little_and_withstands_outliers():
    rng = np.random.default_rng(0)
    n, k = 2000, 16
    root = np.linalg.qr(rng.normal(size=(k, k)))[0] * np.linspace(0.2, 3, k)
    inverse = np.linalg.inv(root)
    clean = rng.normal(size=(n, k)) @ root.T
    dirty = clean.copy()
    dirty[: n // 20] += 10 * root[:, 5]

    def error(cov):
        return np.linalg.norm(inverse @ np.asarray(cov) @ inverse.T - np.eye(k), 2)

    estimate = jax.jit(robust_covariance)
    found = estimate(clean.astype(np.float32), 40)
    assert error(found.cov) <= 2 * error(np.cov(clean.T, bias=True))
    found = estimate(dirty.astype(np.float32), n // 20)
    assert error(found.cov) <= 0.2 * error(np.cov(dirty.T, bias=True))
    assert not found.mask[: n // 20].any() and found.mask.sum() == n - n // 10
    kept = dirty[np.asarray(found.mask)]
    np.testing.assert_allclose(found.mean, kept.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.cov, np.cov(kept.T, bias=True), rtol=1e-3, atol=1e-4)


def test_scores_do_not_depend_on_the_order_or_on_padding_and_never_on_labels():
    h, _ = planted(3, 8, n=400, m=20, d=32, rank=12)
    order = np.random.default_rng(1).permutation(len(h))
    padded = np.concatenate([h, np.full((30, 32), np.nan, np.float32)])
    mask = np.arange(len(padded)) < len(h)

    @jax.jit
    def scores(h, m):
        return fit_spectre(h, m, k=8, **ALL)(h)

    expected = scores(h, 20.0)
    np.testing.assert_allclose(scores(h[order], 20.0), expected[order], rtol=2e-3)
    clean = np.where(mask[:, None], padded, 0)
    masked = fit_spectre(padded, 20.0, k=8, mask=mask, **ALL)(clean)
    np.testing.assert_allclose(masked[: len(h)], expected, rtol=2e-3)
    # One row alone gets the score that it got among the others.
    fitted = fit_spectre(h, 20.0, k=8, **ALL)
    np.testing.assert_allclose(fitted(h[5:6]), fitted(h)[5:6], rtol=1e-5)
    for module in (spectre, representation_filter, shadow, aggregators):
        for _, fn in inspect.getmembers(module, inspect.isfunction):
            names = set(inspect.signature(fn).parameters)
            assert not names & {"is_malicious", "malicious", "bad", "truth", "poisoned"}, fn


def test_jit_eager_and_vmap_agree_and_trace_once():
    h = jnp.stack([jnp.asarray(planted(s, 6, n=150, m=10, d=16, rank=8)[0]) for s in range(2)])
    traces = 0

    def scores(h, m):
        nonlocal traces
        traces += 1
        return fit_spectre(h, m, k=4, n_passes=4, n_power=6)(h)

    jitted = jax.jit(scores)
    one = jnp.stack([jitted(h[0], 10.0), jitted(h[1], 10.0)])
    jitted(h[0], 5.0)
    assert traces == 1
    np.testing.assert_allclose(jax.vmap(scores, (0, None))(h, 10.0), one, rtol=1e-3)
    np.testing.assert_allclose(scores(h[0], 10.0), one[0], rtol=1e-3)


def test_pca_agrees_with_numpy_for_tall_and_wide_matrices():
    rng = np.random.default_rng(0)
    for shape in ((60, 20), (20, 60)):
        h = (rng.normal(size=shape) * np.linspace(1, 4, shape[1])).astype(np.float32)
        x = h.astype(np.float64) - h.mean(0, dtype=np.float64)
        _, s, vt = np.linalg.svd(x, full_matrices=False)
        found = pca_project(jnp.asarray(h), 5)
        np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(5), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found.z, axis=0), s[:5], rtol=1e-4)
        np.testing.assert_allclose(fit_pca(h)(h), np.square(x @ vt[0]), rtol=1e-2, atol=1e-2)
        z = x @ vt[:5].T
        np.testing.assert_allclose(fit_norm(h, k=5)(h), np.square(z).sum(1), rtol=1e-3)
        expected = np.square(z / z.std(0)).sum(1)
        np.testing.assert_allclose(fit_mahalanobis(h, k=5)(h), expected, rtol=1e-3)


def test_the_number_of_directions_is_chosen_to_reach_the_outliers():
    ks = (1, 4, 9, 16)
    best, merits, scorer = jax.jit(choose_k, static_argnames=("ks", "n_passes", "n_power"))(
        planted(0, 12, n=800, m=30, d=32, rank=16)[0], 30.0, ks=ks, **ALL
    )
    assert ks[int(best)] == 16 and merits.shape == (4,) and scorer.map.shape == (16, 32)


def test_the_label_with_outliers_is_named():
    h = np.stack([planted(s, 6, n=300, m=0, d=16, rank=8)[0] for s in range(3)])
    h[1] = planted(1, 6, n=285, m=15, d=16, rank=8)[0]
    mask = jnp.ones(h.shape[:2], bool).at[2, 280:].set(False)
    label, merits = identify_target_label(jnp.asarray(h), mask, 15.0, (4, 8), **ALL)
    assert int(label) == 1 and np.isfinite(merits).all()


def test_exactly_so_many_go_and_the_first_of_equals_first():
    scores = jnp.array([1.0, 3.0, 3.0, 3.0, 2.0, jnp.nan])
    everybody = jnp.ones(6, bool)
    assert keep_lowest(scores, 0, mask=everybody).all()
    np.testing.assert_array_equal(keep_lowest(scores, 3, mask=everybody), [1, 0, 0, 1, 1, 0])
    there = everybody.at[1].set(False)
    np.testing.assert_array_equal(keep_lowest(scores, 2, mask=there), [1, 0, 0, 1, 1, 0])
    assert not keep_lowest(scores, 9, mask=everybody).any()
    kept = keep_lowest(scores, 3, mask=everybody)
    largest = spectre.threshold(scores, 3, mask=everybody)
    assert largest == scores[kept].max() and spectre.threshold(scores, 6, mask=everybody) == -np.inf
    for alpha_bar, n in ((0.24, 50), (0.15, 50), (0.1, 10), (0.3, 10), (0.01, 100)):
        exact = round(alpha_bar * n * 1.5 * 1000) // 1000
        assert int(spectre.n_removed(jnp.float32(alpha_bar) * n)) == exact


def test_bad_input_is_one_sentence():
    h = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.6 for 30 rows of 6 numbers, got 7"):
        spectre_filter(h, n_outliers=2, k=7)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.3 for 4 rows"):
        spectre_filter(h[:4], n_outliers=1, k=4)
    with pytest.raises(ValueError, match=r"alpha_bar n\) must lie in 0\.\.19.*n = 30; got 20"):
        spectre_filter(h, n_outliers=20, k=2)
    with pytest.raises(ValueError, match="method must be one of spectre, pca"):
        spectre_filter(h, n_outliers=2, k=2, method="magic")
    with pytest.raises(ValueError, match=r"h must be floats \[n, d\]"):
        spectre_filter(h[0], n_outliers=2)
    h[3, 2] = np.nan
    with pytest.raises(ValueError, match="h has 1 rows with NaN"):
        spectre_filter(h, n_outliers=2, k=2)
    for alpha_bar in (-0.1, 0.5, 0.7):
        with pytest.raises(ValueError, match=rf"alpha_bar must lie in \[0, 0.5\), got {alpha_bar}"):
            spectre.check_alpha_bar(alpha_bar, 50)
    assert spectre_filter(h[4:], n_outliers=0, k=2).keep.all()
