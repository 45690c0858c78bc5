"""Every bound on random networks against the exact minimum; the order of the methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import verify
from tests.verify.helpers import random_problem, sample_minimum, stack

SIZES = (4, 7, 8, 3)
EPS = (0.05, 0.2, 0.45)


@functools.partial(jax.jit, static_argnames="n_steps")
def bound_all(net, box, spec, rhos, n_steps=60):
    """All methods on a batch of problems, and the duals at any multipliers."""

    def one(net, box, spec, rhos):
        crown = verify.crown_bounds(net, box)
        deepz = verify.deepz_bounds(net, box)
        layers = verify.propagate(net, box, crown)
        domains = verify.pair_domains(net, layers)
        singles = verify.pair_domains(net, layers, rule="single")
        found = {
            "ibp": verify.ibp(net, box, spec),
            "kw": verify.kw(net, box, spec),
            "crown": verify.crown(net, box, spec),
            "deepz": verify.deepz(net, box, spec),
            "deepz, in boxes": verify.deepz(net, box, spec, crown),
            "kw on deepz's boxes": verify.kw(net, box, spec, deepz),
        }
        for name in ("kw", "crown"):
            start = verify.start(net, spec, crown, name)
            found[f"dual at {name}"] = verify.box_dual_value(net, box, spec, crown, start)
        start = verify.start(net, spec, crown, "crown")
        alpha = verify.alpha_ascent(net, box, spec, crown, n_steps=n_steps)
        over_boxes = verify.box_ascent(net, box, spec, crown, start, n_steps=n_steps)
        zd = verify.dual_ascent(net, box, spec, domains, start, n_steps=n_steps)
        random = {
            name: jax.vmap(lambda r, d=d: verify.pair_dual_value(net, box, spec, d, r))(rhos)
            for name, d in (("pairs", domains), ("singles", singles))
        }
        again = verify.multipliers(net, spec, crown, alpha.params)
        found["dual at alpha"] = verify.box_dual_value(net, box, spec, crown, again)
        return found, {"alpha": alpha, "box": over_boxes, "zd": zd}, random

    return jax.vmap(one)(net, box, spec, rhos)


@pytest.fixture(scope="module")
def swept():
    rng = np.random.default_rng(0)
    problems = [random_problem(rng, SIZES, eps=EPS[i % 3]) for i in range(102)]
    scales = np.logspace(-2, 2, 5)
    rhos = [
        tuple(rng.normal(size=(5, 2, n)) * scales[:, None, None] for n in SIZES[1:3])
        for _ in problems
    ]
    with jax.enable_x64(True):
        out = jax.device_get(bound_all(*stack(problems), stack(rhos)))
    exact = np.array([[r.lower for r in verify.mip_bound(*p, time_limit=30)] for p in problems])
    return problems, *out, exact


def test_no_bound_is_above_the_exact_minimum(swept):
    _, found, ascents, random, exact = swept
    assert exact.size == 204
    for name, lower in found.items():
        assert (lower <= exact + 1e-6).all(), name
    for name, ascent in ascents.items():
        # The trace is the best so far: its end bounds every step's value.
        assert (ascent.trace <= exact[:, None] + 1e-6).all(), name
    for name, lower in random.items():
        assert (lower <= exact[:, None] + 1e-6).all(), name


def test_the_exact_minimum_is_below_every_sample_and_attained(swept):
    problems, *_, exact = swept
    rng = np.random.default_rng(1)
    for problem, best in zip(problems[:30], exact, strict=False):
        assert (best <= sample_minimum(rng, *problem, 5000) + 1e-6).all()
        for result, row in zip(verify.mip_bound(*problem, time_limit=30), best, strict=True):
            assert result.status == "optimal"
            assert result.upper == pytest.approx(row, abs=1e-5)


def test_order_and_identities(swept):
    _, found, ascents, _, _ = swept
    tight = {"atol": 1e-9, "rtol": 0}
    np.testing.assert_allclose(found["deepz"], found["kw on deepz's boxes"], **tight)
    np.testing.assert_allclose(found["crown"], found["dual at crown"], **tight)
    np.testing.assert_allclose(ascents["alpha"].lower, found["dual at alpha"], **tight)
    assert (found["deepz, in boxes"] >= found["deepz"] - 1e-9).mean() > 0.9
    assert found["ibp"].mean() < found["crown"].mean()
    for ascent in ascents.values():
        assert (np.diff(ascent.trace, axis=1) >= 0).all()
        np.testing.assert_array_equal(ascent.trace[:, -1], ascent.lower)
    # The same start: pairs see everything that boxes see, and more.
    assert (ascents["zd"].trace[:, 0] >= ascents["box"].trace[:, 0] - 1e-9).all()
    np.testing.assert_allclose(ascents["box"].trace[:, 0], found["crown"], **tight)


def test_the_dual_over_boxes_ends_at_the_linear_program(swept):
    problems, _, ascents, _, _ = swept
    for i, (net, box, spec) in enumerate(problems[:12]):
        lp = np.array([r.lower for r in verify.lp_bound(net, box, spec)])
        assert (ascents["box"].lower[i] <= lp + 1e-6).all()
        assert (ascents["alpha"].lower[i] <= lp + 1e-6).all()
        assert (ascents["alpha"].lower[i] >= lp - 0.1 * (1 + np.abs(lp))).all()


def test_a_point_has_all_bounds_at_its_value():
    rng = np.random.default_rng(3)
    problems = [random_problem(rng, SIZES, eps=0.0) for _ in range(102)]
    rhos = [tuple(rng.normal(size=(5, 2, n)) for n in SIZES[1:3]) for _ in problems]
    with jax.enable_x64(True):
        found, ascents, random = jax.device_get(bound_all(*stack(problems), stack(rhos)))
    values = np.array([sample_minimum(rng, *problem, 1) for problem in problems])
    for name, lower in found.items():
        np.testing.assert_allclose(lower, values, atol=1e-9, err_msg=name)
    for name, ascent in ascents.items():
        np.testing.assert_allclose(ascent.lower, values, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(random["pairs"], values[:, None].repeat(5, 1), atol=1e-9)


def test_hidden_units_may_be_permuted_and_rescaled():
    rng = np.random.default_rng(4)
    problems, changed = [], []
    for _ in range(102):
        net, box, spec = random_problem(rng, SIZES, eps=0.3)
        problems.append((net, box, spec))
        layers = list(net)
        for i in range(2):
            order, scale = rng.permutation(SIZES[i + 1]), rng.uniform(0.1, 10, SIZES[i + 1])
            layers[i] = verify.Dense(
                (layers[i].weight * scale[:, None])[order], (layers[i].bias * scale)[order]
            )
            layers[i + 1] = verify.Dense(
                (layers[i + 1].weight / scale[None])[:, order], layers[i + 1].bias
            )
        changed.append((tuple(layers), box, spec))
    rhos = [tuple(np.zeros((5, 2, n)) for n in SIZES[1:3])] * 102
    with jax.enable_x64(True):
        before, after = (
            jax.device_get(bound_all(*stack(p), stack(rhos))) for p in (problems, changed)
        )
    for name in ("crown", "deepz", "kw"):
        np.testing.assert_allclose(after[0][name], before[0][name], rtol=1e-9, atol=1e-9)


def test_alpha_crown_lies_between_crown_and_the_exact_minimum():
    rng = np.random.default_rng(6)
    gains = []
    bound = jax.jit(lambda *problem: (verify.crown(*problem), verify.alpha_crown(*problem)))
    for _ in range(4):
        problem = random_problem(rng, SIZES, eps=0.3)
        with jax.enable_x64(True):
            crown, alpha = jax.device_get(bound(*problem))
        exact = np.array([r.lower for r in verify.mip_bound(*problem)])
        assert (crown <= alpha).all() and (alpha <= exact + 1e-6).all()
        gains.append(alpha - crown)
    assert np.mean(gains) > 1e-3


def test_starts():
    rng = np.random.default_rng(5)
    net, box, spec = random_problem(rng, SIZES, eps=0.2)
    with jax.enable_x64(True):
        bounds = jax.jit(verify.crown_bounds)(net, box)
        spec = jax.tree.map(jnp.asarray, spec)
        zero = verify.start(net, spec, bounds, "zero")
        assert [r.shape for r in zero] == [(2, 7), (2, 8)] and not any(r.any() for r in zero)
        with pytest.raises(ValueError, match="start must be one of zero, kw, crown, alpha"):
            verify.start(net, spec, bounds, "random")
        with pytest.raises(ValueError, match="needs box"):
            verify.start(net, spec, bounds, "alpha")
