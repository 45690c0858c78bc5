"""The triangle relaxation's linear program and the exact mixed-integer program, on the host.

Both are solved by scipy's HiGHS over sparse rows, a block a layer. Their bounds are as good as the
solver's tolerances (1e-7), which are not subtracted: they are yardsticks, not certificates.
"""

from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize
import scipy.sparse

from jaxml.verify import bounds as bounds_lib
from jaxml.verify.network import Net, apply_on_host, matrix
from jaxml.verify.problem import Bounds, Box, Spec, check_problem


class ExactResult(NamedTuple):
    """What a solver says about the smallest value of one row of a spec.

    Attributes:
      lower: its dual bound; -inf if it has none.
      upper: the value of the network at ``x``, an upper bound; inf for the relaxation.
      gap: ``upper - lower``.
      status: ``"optimal"``, ``"time limit"`` or what else the solver says.
      x: the inputs of its best point, or None.
    """

    lower: float
    upper: float
    gap: float
    status: str
    x: np.ndarray | None


def lp_bound(
    net: Net, box: Box, spec: Spec, bounds: Bounds | None = None, *, time_limit: float = 60.0
) -> list[ExactResult]:
    """Solves the triangle relaxation (Ehlers 2017) for each row of a spec.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      bounds: boxes that the triangles stand on; None takes CROWN's.
      time_limit: seconds a row.

    Returns:
      A result for each row.
    """
    return _solve_rows(net, box, spec, bounds, time_limit, exact=False)


def mip_bound(
    net: Net, box: Box, spec: Spec, bounds: Bounds | None = None, *, time_limit: float = 60.0
) -> list[ExactResult]:
    """Solves each row exactly (Tjeng et al. 2019), or as far as the time allows.

    The arguments and results are those of ``lp_bound``.
    """
    return _solve_rows(net, box, spec, bounds, time_limit, exact=True)


def lp_all_layers(net: Net, box: Box, *, time_limit: float = 60.0) -> Bounds:
    """Bounds every pre-activation by the linear program, layer by layer: slow and tight."""
    found = _host(bounds_lib.interval_bounds, net, box)[:1]
    for k in range(1, len(net) - 1):
        n = net[k].n_out
        rows = np.concatenate([np.eye(n), -np.eye(n)])
        spec = Spec(rows, np.zeros(2 * n))
        results = lp_bound(net[: k + 1], box, spec, found, time_limit=time_limit)
        lower, upper = np.split(np.array([result.lower for result in results]), 2)
        found = (*found, Box(lower, -upper))
    return found


def _host(method, net, box) -> Bounds:
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, method(net, jax.tree.map(np.asarray, box)))


def _solve_rows(net, box, spec, bounds, time_limit, *, exact) -> list[ExactResult]:
    check_problem(net, box, spec)
    box = Box(*(np.asarray(end, np.float64) for end in box))
    weight, offset = (np.asarray(part, np.float64) for part in spec)
    bounds = _host(bounds_lib.crown_bounds, net, box) if bounds is None else bounds
    program = _Program(net, box, bounds, exact=exact)
    last, bias = matrix(net[-1]), np.asarray(net[-1].bias, np.float64)
    results = []
    for row, constant in zip(weight, offset, strict=True):
        lower, status, x = program.solve(row @ last, time_limit)
        lower, upper = lower + float(row @ bias + constant), np.inf
        if exact and x is not None:
            upper = float(row @ apply_on_host(net, x) + constant)
        results.append(ExactResult(lower, upper, upper - lower, status, x))
    return results


class _Program:
    """Variables: the inputs, then ``z`` and ``relu(z)`` of each layer, then binaries."""

    def __init__(self, net: Net, box: Box, bounds: Bounds, *, exact: bool):
        self.n_in = net[0].n_in
        widths = [net[0].n_in] + [layer.n_out for layer in net[:-1] for _ in range(2)]
        starts = np.concatenate([[0], np.cumsum(widths)])
        low, high = [box.lower], [box.upper]
        rows = []  # (blocks {start: matrix}, lower, upper)
        n_binary, last = 0, starts[-1]
        for i, layer in enumerate(net[:-1]):
            before, z, x = starts[2 * i], starts[2 * i + 1], starts[2 * i + 2]
            lower, upper = (np.asarray(end, np.float64) for end in bounds[i])
            bias = np.asarray(layer.bias, np.float64)
            n = len(bias)
            low += [lower, np.maximum(lower, 0)]
            high += [upper, np.maximum(upper, 0)]
            eye = scipy.sparse.eye_array(n).tocsr()
            weight = scipy.sparse.csr_array(matrix(layer))
            rows.append(({before: weight, z: -eye}, -bias, -bias))
            on = eye[lower >= 0]
            rows.append(({x: on, z: -on}, np.zeros(on.shape[0]), np.zeros(on.shape[0])))
            open_ = np.flatnonzero((lower < 0) & (upper > 0))
            pick, l, u = eye[open_], lower[open_], upper[open_]  # noqa: E741
            nothing, inf = np.zeros(len(open_)), np.full(len(open_), np.inf)
            rows.append(({x: pick, z: -pick}, nothing, inf))  # x >= z
            slope = scipy.sparse.diags_array(u / (u - l))
            rows.append(({x: pick, z: -(slope @ pick)}, -inf, -u * l / (u - l)))
            if exact:
                d = last + n_binary
                n_binary += len(open_)
                square = scipy.sparse.eye_array(len(open_))
                rows.append(({x: pick, d: -(square * u)}, -inf, nothing))  # x <= u d
                rows.append(({x: pick, z: -pick, d: -(square * l)}, -inf, -l))
        low.append(np.zeros(n_binary))
        high.append(np.ones(n_binary))
        integral = np.r_[np.zeros(last), np.ones(n_binary)]
        self.n, self.start = last + n_binary, starts[-2]
        self.integral = integral if exact else None
        self.bounds = scipy.optimize.Bounds(np.concatenate(low), np.concatenate(high))
        self.constraints = []
        if rows := [row for row in rows if len(row[1])]:
            coefficients = scipy.sparse.vstack([self._wide(blocks) for blocks, _, _ in rows])
            sides = (np.concatenate(side) for side in list(zip(*rows, strict=True))[1:])
            self.constraints = [scipy.optimize.LinearConstraint(coefficients.tocsc(), *sides)]

    def _wide(self, blocks) -> scipy.sparse.coo_array:
        parts = {start: block.tocoo() for start, block in blocks.items()}
        row = np.concatenate([p.row for p in parts.values()])
        column = np.concatenate([p.col + start for start, p in parts.items()])
        values = np.concatenate([p.data for p in parts.values()])
        height = next(iter(parts.values())).shape[0]
        return scipy.sparse.coo_array((values, (row, column)), shape=(height, self.n))

    def solve(self, row: np.ndarray, time_limit: float) -> tuple[float, str, np.ndarray | None]:
        cost = np.zeros(self.n)
        cost[self.start : self.start + len(row)] = row
        found = scipy.optimize.milp(
            cost, integrality=self.integral, bounds=self.bounds, constraints=self.constraints,
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )  # fmt: skip
        status = {0: "optimal", 1: "time limit", 2: "infeasible"}.get(found.status, found.message)
        bound = found.get("mip_dual_bound")
        if bound is None:
            bound = found.fun if found.status == 0 else -np.inf
        x, n = found.x, self.n_in
        if x is not None:
            x = np.clip(x[:n], self.bounds.lb[:n], self.bounds.ub[:n])
        return float(bound), status, x
