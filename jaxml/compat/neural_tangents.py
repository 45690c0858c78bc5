"""The only door to neural-tangents: its last release, 0.6.5, made right on jax 0.10 to 0.12.

neural-tangents does not import on jax 0.6 or newer, and was in part broken before. :func:`load`
imports it, with the names it misses lent to jax for as long as that takes, and replaces what leans
on parts of jax that have gone or changed. TensorFlow is never loaded.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import math
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.extend.core
import jax.extend.source_info_util
import jax.numpy as jnp
import scipy.linalg
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import ad

from jaxml.compat.jaxprs import apply_equation, called_jaxpr

__all__ = ["lenient", "load"]

_NAME = "neural_tangents"
_LOCK = threading.RLock()


def load() -> types.ModuleType:
    """Imports neural-tangents, repaired, and returns it; later calls return the same module.

    Safe to call from several threads. jax's own namespaces are afterwards as they were before. A
    ``neural_tangents`` that has been imported by other means is kept, and repaired where it
    stands, so that there are never two of it.

    What to know of what comes back: call it inside :func:`lenient` where jax's promotion is
    strict. Name the implementation of an empirical kernel: the automatic choice (0) ranks by a
    count of operations that misleads. Implementation 3 opens ``jit`` and ``jax.checkpoint`` and
    unrolls ``scan``; it refuses, with a NotImplementedError, a model whose derivative has an
    operation with several results, as ``jnp.split`` is (slice instead, or take 1 or 2).

    Raises:
      ImportError: neural-tangents or the frozendict it needs is not installed, or it does not fit
        this jax.
    """
    with _LOCK:
        return _load()


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Lets neural-tangents mix dtypes and ranks, whatever jax's promotion settings are.

    Its calls belong inside; under ``jit``, their tracing. The function whose kernel is taken runs
    under these settings too.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def _load() -> types.ModuleType:
    known = _NAME in sys.modules
    try:
        if not known:
            _import()
        _repair_empirical(sys.modules[f"{_NAME}._src.empirical"])
        _repair_predict(sys.modules[f"{_NAME}._src.predict"])
    except Exception as error:
        if not known:
            _forget()
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing in (_NAME, "frozendict"):
            raise ImportError(
                f"{missing} is not installed: run `pip install frozendict && pip install --no-deps "
                "neural-tangents==0.6.5` (without --no-deps it brings TensorFlow, which jaxml does "
                "not use).",
                name=missing,
            ) from error
        raise ImportError(
            f"neural-tangents {_version()} does not fit jax {jax.__version__}: it is tested at "
            '0.6.5 with jax 0.10 to 0.12, and the implementations "jacobian" and "vector_products" '
            f"of jaxml.ntk do without it ({type(error).__name__}: {error}).",
            name=_NAME,
        ) from error
    return sys.modules[_NAME]


def _version() -> str:
    try:
        return importlib.metadata.version("neural-tangents")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == _NAME]:
        del sys.modules[name]


def _import() -> None:
    """Imports the package as it is, all but its experimental part."""
    _forget()  # what an import that failed has left
    # The package imports this part, and this part would import TensorFlow and tf2jax.
    experimental = f"{_NAME}.experimental"
    sys.modules[experimental] = types.ModuleType(experimental)
    # Python warns of escapes in the docstrings, jax of names on their way out.
    with _lent_names(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module(_NAME)
    # Who asks for this part by name gets the real one, not an empty module.
    del sys.modules[experimental], package.experimental


@contextlib.contextmanager
def _lent_names() -> Iterator[None]:
    """Lends jax the names that neural-tangents imports; takes them back at the end."""
    # Gone since jax 0.6.
    core = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    lent = [(jax.core, name, getattr(jax.extend.core, name)) for name in core]
    # Gone since jax 0.9; it is only a key in tables of rules.
    lent.append((ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")))
    # Gone since jax 0.7, the module itself since jax 0.8.
    util = types.ModuleType("jax.util")
    util.safe_map = lambda f, *xs: [f(*x) for x in zip(*xs, strict=True)]
    util.safe_zip = lambda *xs: list(zip(*xs, strict=True))

    # Read past jax's own __getattr__, which warns of deprecated names or raises.
    lent = [(module, name, value) for module, name, value in lent if name not in vars(module)]
    sys.modules["jax.util"] = util
    for module, name, value in lent:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, _ in lent:
            delattr(module, name)
        del sys.modules["jax.util"]


def _replace(module: types.ModuleType, **replacements) -> None:
    missing = [name for name in replacements if name not in vars(module)]
    if missing:
        raise AttributeError(f"{module.__name__} has no {', '.join(missing)} to replace")
    vars(module).update(replacements)


def _overlay(module: types.ModuleType, **names) -> types.ModuleType:
    """A copy of a module's namespace with some names set; the module stays as it is."""
    copy = types.ModuleType(module.__name__)
    vars(copy).update(vars(module) | names)
    return copy


class _Never:
    """A class that nothing is an instance of."""


def _repair_empirical(module: types.ModuleType) -> None:
    _replace(
        module,
        # jax.core has been without Var since jax 0.6, without DShapedArray since jax 0.9.
        core=_overlay(jax.core, Var=jax.extend.core.Var, DShapedArray=_Never),
        # jax.interpreters.ad has been without both since jax 0.4.26; the checks need lattice_join,
        # which has gone too.
        ad=_overlay(
            ad,
            source_info_util=jax.extend.source_info_util,
            config=types.SimpleNamespace(jax_enable_checks=False),
        ),
        # The size of an abstract value and the dtype of an array: jax 0.10 warns that jnp.size and
        # jnp.dtype will refuse these.
        jnp=_overlay(jnp, size=lambda x: math.prod(x.shape), dtype=jnp.result_type),
        # Its one warning is, equation by equation, that it takes a general path, right but slower.
        warnings=_overlay(warnings, warn=lambda *args, **kwargs: None),
        # ad.linearize takes other arguments since jax 0.10, and since jax 0.7 its result holds
        # calls and constant expressions.
        _get_primals_out_and_pullback=functools.partial(_primals_out_and_pullback, module),
        # It reads Primitive.map_primitive, gone since jax 0.10; jax.linear_transpose does the same.
        _eqn_vjp_fn=_transpose_equation,
        # cost_analysis returns a dict on jax 0.10, a list of one on older ones.
        _get_flops=_flops,
    )


def _repair_predict(module: types.ModuleType) -> None:
    # Since jax 0.4.36 nothing within jax.core.eval_context can be traced: predictions could not be
    # differentiated, jitted or vmapped over their kernel.
    _replace(
        module,
        jax=_overlay(jax, core=_overlay(jax.core, eval_context=contextlib.nullcontext)),
        _get_cho_solve=_now_if_known(module._get_cho_solve),
        _get_fns_in_eigenbasis=_now_if_known(module._get_fns_in_eigenbasis),
        # scipy.linalg.eigvalsh has been without the argument eigvals since scipy 1.14.
        sp=_overlay(scipy, linalg=_overlay(scipy.linalg, eigvalsh=_eigvalsh)),
    )


def _now_if_known(fn: Callable) -> Callable:
    """Has ``fn`` compute at once, under ``jit`` too, unless something it is given is traced."""

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))):
            return fn(*args, **kwargs)
        with jax.ensure_compile_time_eval():
            return fn(*args, **kwargs)

    return wrapped


def _eigvalsh(a, eigvals: tuple[int, int]):
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals)


def _flops(f: Callable, optimize: bool, *args, **kwargs) -> float:
    lowered = jax.jit(f).lower(*args, **kwargs)
    analysis = (lowered.compile() if optimize else lowered).cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def _transpose_equation(eqn: JaxprEqn | None, cotangent, *inputs) -> list:
    """Pulls a cotangent back through one equation, to those inputs that are unknown (linear)."""
    if eqn is None:  # the identity
        return [cotangent]
    pulled = [None] * len(inputs)
    if isinstance(cotangent, ad.Zero):
        return pulled
    unknown = [i for i, x in enumerate(inputs) if ad.is_undefined_primal(x)]

    def forward(*xs):
        args = list(inputs)
        for i, x in zip(unknown, xs, strict=True):
            args[i] = x
        return apply_equation(eqn, args)

    like = [jax.ShapeDtypeStruct(inputs[i].aval.shape, inputs[i].aval.dtype) for i in unknown]
    for i, ct in zip(unknown, jax.linear_transpose(forward, *like)([cotangent]), strict=True):
        pulled[i] = ct
    return pulled


def _primals_out_and_pullback(
    empirical: types.ModuleType, fn: Callable, mode, _j_rules, _s_rules, _fwd, *primals
) -> tuple:
    """The function's value, and the backward pass that collects what ``mode`` asks for."""
    flat, in_tree = jax.tree.flatten(primals)
    # Without jit, so that loops come unrolled.
    with jax.disable_jit():
        out, linear = jax.linearize(lambda *xs: fn(*jax.tree.unflatten(in_tree, xs)), *flat)
        closed = _straighten(jax.make_jaxpr(linear)(*flat))

    def pullback(*cotangents):
        cts = empirical._backward_pass(
            closed.jaxpr,
            mode=mode,
            consts=closed.consts,
            primals_in=[ad.UndefinedPrimal(v.aval) for v in closed.jaxpr.invars],
            cotangents_in=tuple(jax.tree.leaves(cotangents)),
            _j_rules=_j_rules,
            _s_rules=_s_rules,
            _fwd=_fwd,
        )
        return jax.tree.unflatten(in_tree, cts)

    return out, pullback


def _straighten(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Opens the calls in a linear map, computes what does not depend on its arguments, drops waste.

    neural-tangents takes every equation for linear in the arguments, and looks into no call.
    """
    lines: list[tuple[JaxprEqn, list, list]] = []

    def run(jaxpr: Jaxpr, consts, args):
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(v):
            return v.val if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            if (body := called_jaxpr(eqn)) is not None:
                outputs = run(body.jaxpr, body.consts, inputs)
            elif any(isinstance(x, _Later) for x in inputs):
                outputs = [_Later() for _ in eqn.outvars]
                lines.append((eqn, inputs, outputs))
            else:
                outputs = apply_equation(eqn, inputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    params = [_Later() for _ in closed.jaxpr.invars]
    results = run(closed.jaxpr, closed.consts, params)

    needed, kept = {x for x in results if isinstance(x, _Later)}, []
    for line in reversed(lines):
        _, inputs, outputs = line
        if not needed.isdisjoint(outputs):
            needed.update(x for x in inputs if isinstance(x, _Later))
            kept.append(line)

    def straight(*args):
        env = dict(zip(params, args, strict=True))

        def value(x):
            return env[x] if isinstance(x, _Later) else x

        for eqn, inputs, outputs in reversed(kept):
            env.update(zip(outputs, apply_equation(eqn, map(value, inputs)), strict=True))
        return [value(x) for x in results]

    return jax.make_jaxpr(straight)(*(v.aval for v in closed.jaxpr.invars))


class _Later:
    """Stands for a value that depends on the arguments of a linear map."""
