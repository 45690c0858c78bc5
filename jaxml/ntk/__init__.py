"""Neural tangent kernels: empirical and analytic, and what training by them predicts."""

from jaxml.ntk.analytic import analytic_kernel_fn
from jaxml.ntk.empirical import (
    Implementation,
    empirical_ntk,
    linearize,
    ntk_diagonal,
    ntk_vector_product,
)
from jaxml.ntk.predict import (
    ILL_CONDITIONED,
    NOT_FINITE,
    SINGULAR,
    SOLVED,
    Prediction,
    check_solved,
    mse,
    propagator,
)

__all__ = [
    "ILL_CONDITIONED",
    "NOT_FINITE",
    "SINGULAR",
    "SOLVED",
    "Implementation",
    "Prediction",
    "analytic_kernel_fn",
    "check_solved",
    "empirical_ntk",
    "linearize",
    "mse",
    "ntk_diagonal",
    "ntk_vector_product",
    "propagator",
]
