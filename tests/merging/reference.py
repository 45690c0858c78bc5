"""Independent re-statements that the merging tests and benchmarks compare against.

Written from the paper's equations, with tables typed by hand; nothing here calls ``jaxml.merging``.
"""

import numpy as np
import scipy.optimize


def mlp_groups(n_hidden: int) -> list[set]:
    """Groups of an MLP whose dense layers are ``Dense_0 .. Dense_{n_hidden}``."""
    return [
        {
            (f"params/Dense_{i}/kernel", 1),
            (f"params/Dense_{i}/bias", 0),
            (f"params/Dense_{i + 1}/kernel", 0),
        }
        for i in range(n_hidden)
    ]


def weight_matching(groups, a, b, sizes, *, seed=0, max_iter=100, tol=1e-12):
    """Algorithm 1 as published: every table is formed anew, progress is any rise above ``tol``.

    Args:
      groups: name to list of (path, axis).
      a: path to array, fixed.
      b: path to array, permuted.
      sizes: name to number of units.
      seed: visiting order.
      max_iter: passes.
      tol: absolute rise that counts as progress.

    Returns:
      (permutations by name, assignment problems solved).
    """
    rng = np.random.default_rng(seed)
    perms = {name: np.arange(n) for name, n in sizes.items()}
    owner = {(path, axis): name for name, refs in groups.items() for path, axis in refs}
    solved = 0

    def permuted(path, skip):
        x = b[path]
        for axis in range(x.ndim):
            if axis != skip and (path, axis) in owner:
                x = np.take(x, perms[owner[path, axis]], axis=axis)
        return x

    for _ in range(max_iter):
        progress = False
        for name in rng.permutation(sorted(groups)):
            n = sizes[name]
            table = np.zeros((n, n), np.float32)
            for path, axis in groups[name]:
                left = np.moveaxis(a[path], axis, 0).reshape(n, -1)
                right = np.moveaxis(permuted(path, axis), axis, 0).reshape(n, -1)
                table += left @ right.T
            _, new = scipy.optimize.linear_sum_assignment(table, maximize=True)
            solved += 1
            before = table[np.arange(n), perms[name]].sum()
            after = table[np.arange(n), new].sum()
            progress = progress or after > before + tol
            perms[name] = new
        if not progress:
            break
    return perms, solved


def objective(groups, perms, a, b):
    """Inner product of A and the permuted B over all parameters of ``groups``, in float64."""
    total = 0.0
    for path in sorted({path for refs in groups.values() for path, _ in refs}):
        x = b[path]
        for name, refs in groups.items():
            for where, axis in refs:
                if where == path:
                    x = np.take(x, perms[name], axis=axis)
        total += np.vdot(a[path].astype(np.float64), x.astype(np.float64))
    return total
