"""Private least squares with the interface of a scikit-learn estimator; scikit-learn not needed."""

from typing import Any

import numpy as np

from jaxml.core.types import Key
from jaxml.privacy.mechanisms import entropy_key
from jaxml.privacy.private_ols import PASS, issp_constants, private_ols

_PARAMS = (
    "epsilon", "delta", "leverage_bound", "residual_bound", "residual_scale", "fit_intercept",
    "fail_rate",
)  # fmt: skip


class PrivateLinearRegression:
    """Linear regression with (epsilon, delta)-differential privacy; see ``private_ols``.

    Every call of ``fit`` spends the budget once more.

    Attributes:
      coef_: ``[d]``, NaN if it failed.
      intercept_: float, 0 without ``fit_intercept``.
      answered_: whether there is an answer.
      constants_: ISSPConstants, public.
    """

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float,
        leverage_bound: float,
        residual_bound: float,
        residual_scale: float | None = None,
        fit_intercept: bool = True,
        fail_rate: float = 1e-3,
    ):
        """Stores the public arguments; ``residual_scale`` is ``residual_bound`` if None."""
        self.epsilon = epsilon
        self.delta = delta
        self.leverage_bound = leverage_bound
        self.residual_bound = residual_bound
        self.residual_scale = residual_scale
        self.fit_intercept = fit_intercept
        self.fail_rate = fail_rate

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {name: getattr(self, name) for name in _PARAMS}

    def set_params(self, **params: Any) -> "PrivateLinearRegression":
        """Replaces arguments of the constructor.

        Raises:
          ValueError: there is no such argument.
        """
        for name, value in params.items():
            if name not in _PARAMS:
                raise ValueError(f"there is no parameter {name!r}; there are {', '.join(_PARAMS)}")
            setattr(self, name, value)
        return self

    def fit(
        self, X: np.ndarray, y: np.ndarray, *, key: Key | None = None
    ) -> "PrivateLinearRegression":
        """Fits to ``[n, d]`` and ``[n]`` float64; the key is from the system's entropy if None.

        Raises:
          ValueError: an argument out of range, shapes or dtypes; never because of values.
        """
        X, y = np.asarray(X), np.asarray(y)
        if self.fit_intercept and X.ndim == 2:
            X = np.column_stack([X, np.ones(len(X), X.dtype)])
        residual_scale = self.residual_scale
        self.constants_ = issp_constants(
            len(X),
            epsilon=self.epsilon,
            delta=self.delta,
            leverage_bound=self.leverage_bound,
            residual_bound=self.residual_bound,
            residual_scale=self.residual_bound if residual_scale is None else residual_scale,
            fail_rate=self.fail_rate,
        )
        result = private_ols(entropy_key() if key is None else key, X, y, self.constants_)
        coef = np.asarray(result.coef)
        self.answered_ = bool(result.status == PASS)
        self.coef_ = coef[:-1] if self.fit_intercept else coef
        self.intercept_ = float(coef[-1]) if self.fit_intercept else 0.0
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Returns predictions ``[n]``, NaN if the fit failed."""
        return np.asarray(X) @ self.coef_ + self.intercept_
