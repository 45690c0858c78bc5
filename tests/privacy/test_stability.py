"""What privacy rests on: how far levels, scores and estimates of neighbours are apart.

Each inequality of docs/private_ols.md is checked on neighbours made at random, and on pairs made
for it; the mutations show that the checks can fail.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import privacy
from tests.privacy import reference

N, D = 200, 2
# By its path: as an attribute of the package, the name is the function's.
module = importlib.import_module("jaxml.privacy.private_ols")


def fit(Z, constants):
    """Returns the diagnostics of data sets ``[..., n, d + 1]``, of all in one program."""

    def one(Z):
        return privacy.private_ols(
            jax.random.key(0), Z[:, :-1], Z[:, -1], constants, unsafe_diagnostics=True
        )[1]

    with jax.enable_x64(True):
        many = jax.vmap(one)(jnp.asarray(Z.reshape(-1, *Z.shape[-2:])))
    return jax.tree.map(lambda x: np.asarray(x).reshape(*Z.shape[:-2], *x.shape[1:]), many)


def borderline_pairs(rng, n_pairs):
    """Draws neighbours ``[n_pairs, 2, N, D + 1]`` with rows about the thresholds."""
    Z = rng.normal(size=(n_pairs, 2, N, D + 1))
    Z *= np.sqrt(D + 1) / np.linalg.norm(Z, axis=-1, keepdims=True)  # leverages near (D + 1) / N
    Z[:, 1] = Z[:, 0]
    for pair in Z:
        n_outliers = rng.integers(1, 6)
        rows = rng.integers(1, N, n_outliers)
        direction = rng.normal(size=(n_outliers, D + 1))
        if rng.random() < 0.5:
            direction[:] = rng.normal(size=D + 1)
        size = rng.uniform(2.0, 2.6, (n_outliers, 1))
        pair[:, rows] = size * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        replaced = rng.normal(size=(2, D + 1))
        replaced *= rng.choice([0, 1.0, 2, 3, 1e3], (2, 1)) / np.linalg.norm(
            replaced, axis=1, keepdims=True
        )
        if rng.random() < 0.4:
            replaced[1] = replaced[0] * [1, 1, -1]
        pair[:, 0] = replaced
    Z[..., -1] += Z[..., :-1].sum(-1)
    return Z


@pytest.fixture(scope="module")
def pairs():
    constants = reference.wide_constants(N)
    assert constants.feasible and 3 <= constants.k <= 8
    Z = borderline_pairs(np.random.default_rng(0), 1500)
    return constants, Z, fit(Z, constants)


def breaches(constants, Z, found):
    """Lists, by step of the proof, how near each pair comes to its inequality; above 1 breaks it.

    Returns:
      ``{step: [n_pairs]}`` of the pairs of which both may pass, and how many of those differ.
    """
    c, worst = constants, {}
    others = slice(1, None)
    first = np.array([[reference.score(t, c.k) for t in two] for two in found.leverage_levels])
    worst["(c) score of leverage"] = np.abs(np.diff(first)).ravel()
    # A search that ends early, with the score k, leaves some levels open.
    levels = found.leverage_levels[(first < c.k).all(1)][..., others]
    worst["(b) levels of leverage"] = np.abs(np.diff(levels, axis=1)).max(-1).ravel()
    worst["(h) score"] = np.abs(np.diff(found.score)).ravel()
    both = (found.score < c.k).all(1)
    Z, f = Z[both], jax.tree.map(lambda x: x[both], found)
    worst["(e) levels of residual"] = np.abs(np.diff(f.levels[..., others], axis=1)).max(-1).ravel()
    for name in (
        "(d) leverage", "(d) weights", "(e) rss", "(e) residuals", "(f) residuals", "(f) shift",
        "(g) trace",
    ):  # fmt: skip
        worst[name] = np.zeros(len(Z))
    for i, (own, other) in enumerate(Z):
        X = [z[:, :-1] for z in (own, other)]
        grams, norms, leverages = [], [], []
        for side, z in enumerate((own, other)):
            w, v, x, y = f.leverage_weights[i, side], f.weights[i, side], X[side], z[:, -1]
            gram = (z * w[:, None]).T @ z
            leverage = np.einsum("ij,jk,ik->i", z, np.linalg.inv(gram), z)[w > 0].max()
            leverages.append(leverage / c.leverage_limit)
            grams.append((x * v[:, None]).T @ x)
            residual = np.abs(y - x @ f.coef[i, side])[v > 0].max()
            worst["(f) residuals"][i] = max(worst["(f) residuals"][i], residual / c.residual_limit)
            norms.append(grams[-1])
        worst["(d) leverage"][i] = max(leverages)
        # The step of the proof: the common rows change by (k - 1) / ramp in all.
        change = np.abs(np.diff(f.weights[i, :, others], axis=0)).sum()
        worst["(d) weights"][i] = change * c.ramp / max(c.k - 1, 1e-9)
        worst["(e) rss"][i] = np.abs(np.diff(np.log(f.rss[i])))[0] / np.log(c.gram_ratio)
        moved = np.abs(X[0] @ np.diff(f.leverage_coef[i], axis=0)[0])[others]
        counted = (f.leverage_weights[i, :, others] > 0).any(0)
        worst["(e) residuals"][i] = moved[counted].max() / c.residual_step
        shift = np.diff(f.coef[i], axis=0)[0]
        longest = max(shift @ gram @ shift for gram in norms)
        worst["(f) shift"][i] = np.sqrt(longest) / c.sensitivity
        # Loss of swapping covariances, at its (1 - delta) quantile: (g) bounds it by traces.
        common = np.minimum(*f.weights[i])[:, None]
        common[0] = 0
        core = (X[0] * common).T @ X[0]
        extras = [np.trace(np.linalg.solve(core, gram - core)) for gram in grams]
        x = privacy.chi_square_bound(c.delta_covariance)
        loss = max(extras[0] + x * extras[1], extras[1] + x * extras[0]) / 2
        worst["(g) trace"][i] = loss / c.epsilon_covariance
    differ = (np.diff(f.weights[..., others], axis=1) != 0).any((1, 2)).sum()
    return worst, differ


def test_neighbours_stay_as_near_as_the_proof_says(pairs):
    worst, differ = breaches(*pairs)
    assert len(worst["(f) shift"]) >= 500  # pairs of which both may pass
    assert differ >= 50  # and that give some row another weight
    assert {name: v.max() for name, v in worst.items() if v.max() > 1 + 1e-9} == {}
    # The checks press: none of them is idle.
    assert {name: v.max() for name, v in worst.items() if v.max() < 0.2} == {}


def test_a_row_that_turns_its_residual_over_is_the_worst_case():
    n = 4000
    constants = privacy.issp_constants(
        n, epsilon=20.0, delta=1e-3, leverage_bound=0.01, residual_bound=6.0, residual_scale=1.05
    )
    Z = np.stack(privacy.reflected_pair(n, 0.0098))[None]
    found = fit(Z, constants)
    assert (found.score == 0).all() and constants.k >= 3
    probe = np.abs(Z[0, 0, 1, 0] * np.diff(found.leverage_coef[0, :, 0])[0])
    # A third of what is proven and more, so that a step 50 times shorter could not hide ...
    assert constants.residual_step / 3 < probe <= constants.residual_step
    # ... and it does not: then the level of the probe moves by more than one.
    residuals = np.abs(Z[0, 0, 1, 1] - Z[0, 0, 1, 0] * found.leverage_coef[0, :, 0])
    honest = constants._replace(residual_bound=residuals.min() + 1e-9)
    short = honest._replace(residual_step=constants.residual_step / 50)
    moved = [np.abs(np.diff(fit(Z, c).levels[0, :, 1]))[0] for c in (honest, short)]
    assert moved[0] == 1 < moved[1]
    gram = (Z[0, 0, :, :1] * found.weights[0, 0][:, None]).T @ Z[0, 0, :, :1]
    shift = np.sqrt(gram[0, 0]) * np.abs(np.diff(found.coef[0, :, 0]))[0]
    assert constants.sensitivity / 3 < shift <= constants.sensitivity


def equal_leverages():
    """Neighbours of the data set whose rows all have the same leverage."""
    Z = reference.signs(40)
    other = Z.copy()
    other[0] = 0
    outlier = Z.copy()
    outlier[0] = 1e4, -1e4
    return np.stack([Z, other, outlier])


def levels_of(Z, **kwargs):
    kwargs = {"leverage_bound": 2 / 40 * (1 + 1e-9), "k": 3, "ramp": 3} | kwargs
    with jax.enable_x64(True):
        levels = jax.vmap(lambda z: module.leverage_levels(z, **kwargs).levels)
        return np.asarray(levels(jnp.asarray(Z)))


def test_rows_that_all_stand_at_the_threshold_rise_by_one_level():
    Z = equal_leverages()
    found = levels_of(Z)
    np.testing.assert_array_equal(
        found, [reference.levels(z, 2 / 40 * (1 + 1e-9), 3, 3) for z in Z]
    )
    assert (found[0] == 0).all()
    # At the first threshold half of the rows go, and what is left has no full rank: no row is good
    # there, and every row is at the next one.
    assert (found[1:, 1:] == 1).all() and found[1, 0] == 1 and found[2, 0] == 7
    scores = [int(privacy.level_score(jnp.asarray(t), 3)) for t in found]
    assert scores == [0, 1, 1]


def test_thresholds_without_a_gap_are_found_out(monkeypatch):
    monkeypatch.setattr(module, "STEP", 1e-9)
    found = levels_of(equal_leverages())
    assert np.abs(found[0, 1:] - found[2, 1:]).max() > 1


def test_a_score_that_adds_rows_and_levels_moves_by_two():
    found = levels_of(equal_leverages())
    assert [reference.sum_score(t, 3) for t in found] == [0, 1, 2]
    assert [int(privacy.level_score(jnp.asarray(t), 3)) for t in found] == [0, 1, 1]


def audited(scale, n_draws=40_000):
    n = 12_000
    constants = privacy.issp_constants(
        n, epsilon=1.0, delta=1e-6, leverage_bound=8 / n, residual_bound=3.0, residual_scale=1.02
    )
    assert constants.feasible
    noisy = constants._replace(noise_scale=scale * constants.noise_scale)

    def mechanism(key, Z):
        return privacy.private_ols(key, Z[:, :-1], Z[:, -1], noisy).coef

    with jax.enable_x64(True):
        pair = [(jnp.asarray(z),) for z in privacy.reflected_pair(n, 7.8 / n)]
        keys = jax.random.split(jax.random.key(0), n_draws)
        return privacy.audit_epsilon(mechanism, *pair, keys, delta=1e-6, confidence=0.999)


def test_an_audit_finds_nothing_against_the_noise_and_much_against_a_twentieth_of_it():
    honest, weak = audited(1.0), audited(0.05)
    assert honest.epsilon_lower <= 1.0
    assert weak.epsilon_lower > 1.0
    assert honest.epsilon_power > 3 and max(honest.failed) < 0.005
