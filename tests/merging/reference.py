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


def _conv_and_norm(conv: str, norm: str) -> set:
    return {
        (f"params/{conv}/kernel", 3),
        (f"params/{norm}/scale", 0),
        (f"params/{norm}/bias", 0),
    }


def resnet20_groups() -> list[set]:
    """Groups of ``jaxml.nn.resnet20`` with layer norms: 9 blocks, 3 streams."""
    inner = [
        _conv_and_norm(f"ResidualBlock_{i}/Conv_0", f"ResidualBlock_{i}/LayerNorm_0")
        | {(f"params/ResidualBlock_{i}/Conv_1/kernel", 2)}
        for i in range(9)
    ]
    sources = [
        ("Conv_0", "LayerNorm_0"),
        ("ResidualBlock_3/shortcut", "ResidualBlock_3/shortcut_norm"),
        ("ResidualBlock_6/shortcut", "ResidualBlock_6/shortcut_norm"),
    ]
    readers = [
        ["ResidualBlock_0/Conv_0", "ResidualBlock_1/Conv_0", "ResidualBlock_2/Conv_0",
         "ResidualBlock_3/Conv_0", "ResidualBlock_3/shortcut"],
        ["ResidualBlock_4/Conv_0", "ResidualBlock_5/Conv_0",
         "ResidualBlock_6/Conv_0", "ResidualBlock_6/shortcut"],
        ["ResidualBlock_7/Conv_0", "ResidualBlock_8/Conv_0"],
    ]  # fmt: skip
    streams = []
    for stage, (source, reading) in enumerate(zip(sources, readers, strict=True)):
        stream = _conv_and_norm(*source) | {(f"params/{conv}/kernel", 2) for conv in reading}
        for i in range(3 * stage, 3 * stage + 3):
            stream |= _conv_and_norm(f"ResidualBlock_{i}/Conv_1", f"ResidualBlock_{i}/LayerNorm_1")
        streams.append(stream)
    streams[-1].add(("params/Dense_0/kernel", 0))
    return inner + streams


def vgg16_groups() -> list[set]:
    """Groups of ``jaxml.nn.vgg16`` with layer norms on images that pool to one position."""
    convs = [_conv_and_norm(f"Conv_{i}", f"LayerNorm_{i}") for i in range(13)]
    for i in range(12):
        convs[i].add((f"params/Conv_{i + 1}/kernel", 2))
    convs[12].add(("params/Dense_0/kernel", 0))
    return convs + mlp_groups(2)


def weight_matching(groups, a, b, sizes, *, seed=0, max_iter=100, tol=1e-12, xp=np):
    """Algorithm 1 as published: every table is formed anew, progress is any rise above ``tol``.

    Args:
      groups: name to list of (path, axis).
      a: path to array, fixed.
      b: path to array, permuted.
      sizes: name to number of units.
      seed: visiting order.
      max_iter: passes.
      tol: absolute rise that counts as progress.
      xp: ``numpy``, or ``jax.numpy`` for one dispatch an operation as in the paper's own code.

    Returns:
      (permutations by name, assignment problems solved).
    """
    rng = np.random.default_rng(seed)
    perms = {name: xp.arange(n) for name, n in sizes.items()}
    owner = {(path, axis): name for name, refs in groups.items() for path, axis in refs}
    solved = 0

    def permuted(path, skip):
        x = b[path]
        for axis in range(x.ndim):
            if axis != skip and (path, axis) in owner:
                x = xp.take(x, perms[owner[path, axis]], axis=axis)
        return x

    for _ in range(max_iter):
        progress = False
        for name in rng.permutation(sorted(groups)):
            n = sizes[name]
            table = xp.zeros((n, n), xp.float32)
            for path, axis in groups[name]:
                left = xp.moveaxis(a[path], axis, 0).reshape(n, -1)
                right = xp.moveaxis(permuted(path, axis), axis, 0).reshape(n, -1)
                table += left @ right.T
            _, new = scipy.optimize.linear_sum_assignment(table, maximize=True)
            new = xp.asarray(new)
            solved += 1
            before = table[xp.arange(n), perms[name]].sum()
            after = table[xp.arange(n), new].sum()
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
