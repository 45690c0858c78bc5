"""The methods in their order on a robust network of real digits, as on the paper's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import data, train, verify
from jaxml.nn import MLP

pytestmark = pytest.mark.heavy


def test_the_order_of_all_methods_on_digits():
    digits = data.load("digits")
    model = verify.AdversarialTraining(MLP((100, 100), 10), 0.06, 5)
    optimizer = train.make_optimizer("adam", learning_rate=3e-3)
    state = train.fit(
        jax.random.key(0), model, optimizer, digits.train_x, digits.train_y, n_epochs=60,
        batch_size=100, epochs_per_call=60,
    )  # fmt: skip
    net = verify.from_flax(
        model.model, {"params": state.variables["params"]["model"]}, digits.input_shape
    )
    rows = []
    for x, y in zip(digits.test_x[:6], digits.test_y[:6].tolist(), strict=True):
        box = verify.linf_box(x, 0.08)
        spec = verify.margin_spec(y, 10, targets=[(y + 1) % 10])
        arrays = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (net, box, spec))
        bounds = verify.crown_bounds(arrays[0], arrays[1])
        start = verify.start(arrays[0], arrays[2], bounds, "crown")
        crown = verify.certify(net, box, spec, jax.device_get(start))
        (lp,) = verify.lp_bound(net, box, spec, crown.bounds)
        zd = verify.zonodual_bound(net, box, spec, n_steps=1000, group_size=16)
        (mip,) = verify.mip_bound(net, box, spec, crown.bounds, time_limit=15)
        rows.append([
            verify.certify_ibp(net, box, spec)[0], verify.certify_deepz(net, box, spec)[0],
            crown.lower[0], lp.lower, zd.lower[0], zd.mip_lower[0], mip.upper,
        ])  # fmt: skip
    ibp, deepz, crown, lp, zd, merged, upper = np.array(rows).T
    assert (ibp < deepz).all() and deepz.mean() <= crown.mean()
    assert (crown <= lp + 1e-6).all() and (lp < zd).all()
    assert (zd < merged).all() and (merged <= upper).all()
    assert (zd - crown).mean() >= 2 * (lp - crown).mean()
    assert (merged - lp).mean() >= 2 * (zd - lp).mean()
