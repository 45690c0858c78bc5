r"""GCQ: what prompts make a language model of one's own say, and what its oracle is asked for that.

Searches for prompts behind which greedy decoding says given, benign sentences, with and without a
proxy model, and counts every query. Then for suffixes that a detector of licence text misses.

  python -m launch.gcq --workdir=out/gcq
  python -m launch.gcq --targets_file=targets.txt --searches=gcq,random --workdir=out/gcq_mine

The models are of the extraction study's recipe, trained once with --cache_dir. Only models on this
machine are asked. A run that is killed goes on from its last step with --resume.
"""

import pathlib
from functools import partial

from launch import _app

SEARCHES = (
    "gcq",
    "gcq with ideal proxy",
    "random",
    "position first",
    "position first with gradient",
    "GCG",
    "transfer",
    "random with random init",
)


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    if not config.searches:
        raise ValueError("searches must name at least one, got none")
    if unknown := [name for name in config.searches if name not in SEARCHES]:
        raise ValueError(f"searches must be of {', '.join(SEARCHES)}; got {unknown[0]!r}")
    for name, legal in (
        ("audited", ("model", "control")),
        ("init", ("repeat_target", "random")),
        ("expand", ("best", "best_unexplored")),
    ):
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name in ("max_queries", "seeds", "suffix_len", "buffer_size", "query_batch", "n_tries",
                 "top_k", "gcg_batch", "transfer_steps", "bias_steps"):  # fmt: skip
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if config.query_batch > config.proxy_batch:
        raise ValueError(
            f"query_batch must be at most proxy_batch={config.proxy_batch}, "
            f"got {config.query_batch}"
        )
    if config.bias_k < 2:
        raise ValueError(f"bias_k must be at least 2, got {config.bias_k}")
    lines(config)


def lines(config) -> list[str]:
    """Returns the target sentences.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no sentence.
    """
    found = list(config.targets)
    if config.targets_file:
        path = pathlib.Path(config.targets_file)
        if not path.is_file():
            raise FileNotFoundError(f"targets_file: there is no file {path}")
        found = path.read_text(encoding="utf-8").splitlines()
    found = [line.strip() for line in found if line.strip()]
    if not found:
        raise ValueError("targets must be one sentence or more, got none")
    return found


if __name__ == "__main__":
    _app.start(__doc__, paper="gcq", check=check)

import jax
import numpy as np

from jaxml import language
from jaxml.core.rng import named_key
from jaxml.data import tokenizers
from jaxml.io import MetricsWriter, artifacts
from launch import _gcq_detector, _gcq_report, _language_model
from launch._gcq_report import Bias, Evasion, Outcome
from launch._gcq_search import search, write_trace


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Searches, asks again through a narrower interface, and searches for evasive suffixes.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/gcq``.
      workdir: folder for artifacts, from which a second call goes on; None writes nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices over which the rows of a pass through a model are split; None is the default.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    study = Study(key, config, _language_model.load(key, config.lm, writer), writer, mesh)
    outcomes, traces = [], {}
    for name in config.searches:
        folder = None if root is None else root / name.replace(" ", "_")
        found, trace = study.search(name, folder)
        outcomes += found
        traces[name] = trace
        if folder is not None and jax.process_index() == 0:
            artifacts.save_json(folder / "result.json", [outcome._asdict() for outcome in found])
            write_trace(folder / "trace.csv", trace, [f"{o.target}/{o.seed}" for o in found])
    bias = study.through_a_bias()
    evasions = evade(key, config, root, writer)
    return _app.Result(
        _gcq_report.claims(config, study.init_success, outcomes, bias, evasions),
        _gcq_report.tables(study.init_success, outcomes, bias, evasions),
        _gcq_report.figures(config, outcomes, evasions),
        _gcq_report.notes(config, study.round_trip_init, outcomes),
    )


class Study:
    """The two models, the targets of all seeds, and the searches on them."""

    def __init__(self, key, config, loaded, writer, mesh):
        """Encodes the targets and makes the oracles."""
        self.config, self.writer, tokenizer = config, writer, loaded.texts.tokenizer
        self.tokenizer, self.model = tokenizer, loaded.model
        self.bos = tokenizers.bos_id(tokenizer)
        self.sentences = lines(config)
        # A sentence follows the prompt as the next word does.
        ids = tokenizers.encode(tokenizer, [f" {line}" for line in self.sentences])
        longest = loaded.model.context - config.suffix_len - 1
        for line, target in zip(self.sentences, ids, strict=True):
            if len(target) > longest:
                raise ValueError(f"targets must have at most {longest} tokens, got {line!r}")
        self.lengths = [len(target) for target in ids]
        # Seeds are problems side by side: seed after seed, all targets of each.
        self.ids = ids * config.seeds
        self.targets = language.pad_targets(self.ids)
        names = ("model", "control")
        weights = dict(zip(names, (loaded.variables, loaded.control), strict=True))
        proxy = names[config.audited == "model"]
        self.weights = {"target": weights[config.audited], "proxy": weights[proxy]}
        self.oracles = {
            name: language.LogprobOracle(
                language.lm_log_probs(self.model, variables, mesh=mesh),
                self.targets,
                prefix=(self.bos,),
            )
            for name, variables in self.weights.items()
        }
        self.allowed = np.arange(self.model.vocab_size) != self.bos
        self.key = named_key(key, "gcq")
        repeated = self.first("repeat_target")
        answers = self.oracles["target"](np.arange(len(ids)), repeated[: len(ids)])
        self.init_success = answers.success
        self.round_trip_init = tokenizers.round_trips(tokenizer, repeated[: len(ids)])

    def first(self, init: str) -> np.ndarray:
        """Makes the first prompts."""
        c, n = self.config, len(self.ids)
        if init == "repeat_target":
            return language.init_prompts(0, init, targets=self.ids, suffix_len=c.suffix_len)
        seed = int(jax.random.randint(named_key(self.key, "init"), (), 0, 2**31 - 1))
        draws = language.init_prompts(
            seed, init, n=500 * n, suffix_len=c.suffix_len, allowed=self.allowed
        )
        if c.round_trip:
            # About one in a hundred; with too few of them, others stand behind.
            fits = tokenizers.round_trips(self.tokenizer, draws)
            draws = draws[np.argsort(~fits, kind="stable")]
        return draws[:n]

    @property
    def keys(self):
        """A key for each problem, the same in every search."""
        return jax.random.split(named_key(self.key, "search"), len(self.ids))

    def step(self, name: str):
        """Returns the step of a search and the oracle that it asks."""
        c = self.config
        common = {
            "allowed": self.allowed,
            "max_queries": c.max_queries,
            "admissible": partial(tokenizers.round_trips, self.tokenizer) if c.round_trip else None,
        }
        asked = "proxy" if name == "transfer" else "target"

        def swaps():
            return language.gradient_swaps(
                self.model, self.weights[asked], self.targets, top_k=c.top_k, prefix=(self.bos,)
            )

        if name in ("GCG", "transfer"):
            step, own = language.gcg_step, {"swaps": swaps(), "query_batch": c.gcg_batch}
        elif name.startswith("position first"):
            gradient = swaps() if name.endswith("gradient") else None
            step, own = language.position_first_step, {"n_tries": c.n_tries, "swaps": gradient}
        else:
            proxy = {"gcq": "proxy", "gcq with ideal proxy": "target"}.get(name)
            step = language.gcq_step
            own = {
                "proxy": self.oracles.get(proxy),
                "proxy_batch": c.proxy_batch,
                "query_batch": c.query_batch,
                "expand": c.expand,
            }
        oracle = self.oracles[asked]
        return partial(step, oracle=oracle, **common, **own), oracle

    def search(self, name: str, folder):
        """Runs one search on all targets; returns outcomes and the trace."""
        c = self.config
        self.writer.stage(name, c.max_queries)
        step, oracle = self.step(name)

        def on_step(state):
            queries = int(state.ledger.queries[~state.solved].max(initial=0))
            if queries:
                self.writer.step(min(queries, c.max_queries), solved=int(state.solved.sum()))

        found = search(
            self.keys, oracle, self.first("random" if name.endswith("random init") else c.init),
            step, buffer_size=c.buffer_size, max_queries=c.max_queries,
            # A step that finds nothing to send costs no query, and must not go on for ever.
            n_steps=c.transfer_steps if name == "transfer" else c.max_queries,
            folder=folder, on_step=on_step,
        )  # fmt: skip
        state = found.state
        solved, ledger, loss = state.solved, state.ledger, state.buffer.loss[:, 0]
        if name == "transfer":
            # The target sees one prompt for each sentence, when the proxy is done with it.
            answers = self.oracles["target"](np.arange(len(self.ids)), state.best)
            solved, loss = answers.success, answers.parts.sum(1)
            ledger = language.Ledger(*answers[2:], np.zeros(len(solved), np.int64))
        n = len(self.sentences)
        return [
            Outcome(
                search=name,
                target=self.sentences[i % n],
                tokens=self.lengths[i % n],
                seed=i // n,
                solved=bool(solved[i]),
                queries=int(ledger.queries[i]),
                scored_tokens=int(ledger.scored_tokens[i]),
                prompt_tokens=int(ledger.prompt_tokens[i]),
                failures=int(ledger.failures[i]),
                loss=float(loss[i]),
                prompt=tokenizers.decode(self.tokenizer, state.best[i]),
            )
            for i in range(len(self.ids))
        ], found.trace

    def through_a_bias(self) -> Bias:
        """Repeats the first steps of random search through a top-k interface, token by token."""
        c = self.config
        following = language.lm_next_token(
            self.model,
            self.weights["target"],
            length=1 + c.suffix_len + self.targets.shape[1],
        )
        score = language.bias_scores(language.simulate_top_k(following, k=c.bias_k))
        narrow = language.TokenwiseOracle(score, self.targets, prefix=(self.bos,))
        self.writer.stage(f"random search through the {c.bias_k} likeliest tokens", c.bias_steps)
        states = []
        for oracle in (self.oracles["target"], narrow):
            step = partial(
                self.step("random")[0].func, **self.step("random")[0].keywords | {"oracle": oracle}
            )
            found = search(
                self.keys, oracle, self.first(c.init), step, buffer_size=c.buffer_size,
                max_queries=c.max_queries, n_steps=c.bias_steps,
                on_step=lambda state: self.writer.step(state.step, solved=int(state.solved.sum())),
            )  # fmt: skip
            states.append(found.state)
        full, short = states
        # Losses agree to rounding, so prompts of all but equal loss may change places.
        same = [
            {tuple(p) for p in a.tolist()} == {tuple(p) for p in b.tolist()}
            for a, b in zip(full.buffer.prompts, short.buffer.prompts, strict=True)
        ]
        finite = np.isfinite(full.buffer.loss) & np.isfinite(short.buffer.loss)
        gap = np.abs(full.buffer.loss[finite] - short.buffer.loss[finite])
        return Bias(
            k=c.bias_k,
            same=[
                bool(s and a == b) for s, a, b in zip(same, full.solved, short.solved, strict=True)
            ],
            queries=int(short.ledger.queries.sum()),
            calls=int(short.ledger.calls.sum()),
            scored_tokens=int(short.ledger.scored_tokens.sum()),
            all_tokens=int(full.ledger.scored_tokens.sum()),
            prompt_tokens=int(short.ledger.prompt_tokens.sum()),
            loss_error=float(gap.max(initial=0)),
        )


def evade(key, config, root, writer) -> Evasion:
    """Trains the detector and searches for suffixes that it misses."""
    c = config.detector
    m = config.suffix_len
    windows = _gcq_detector.make_windows(0, window=c.window, vocab_size=c.vocab_size)
    classify, strings, accuracy = _gcq_detector.fit(key, c, windows, m, writer)
    train, own, test = np.split(strings, np.cumsum([c.n_train_strings, c.own_strings]))
    size = windows.tokenizer.get_vocab_size()
    allowed = np.arange(size) > 0
    key = named_key(key, "evade")

    def evaded(strings, suffixes) -> float:
        suffixes = np.broadcast_to(suffixes, (len(strings), m)).astype(np.int32)
        return float(1 - classify(np.concatenate([strings, suffixes], axis=1))[1].mean())

    s = c.universal_seeds
    universal = language.ClassifierOracle(
        classify, np.broadcast_to(train[None], (s, *train.shape)), n_parts=_gcq_detector.N_OUTPUTS
    )
    first = language.init_prompts(0, "random", n=s, suffix_len=m, allowed=allowed)
    keys = jax.random.split(key, s)
    steps = {
        "position first": partial(language.position_first_step, n_tries=c.n_tries),
        # As many tries a step.
        "random": partial(language.gcq_step, proxy=None, query_batch=m + c.n_tries),
    }
    options = {"allowed": allowed, "max_queries": c.universal_queries, "stop": False}
    curves = {}
    for name, step in steps.items():
        writer.stage(f"universal suffix, {name}", c.universal_queries)
        folder = None if root is None else root / f"universal_{name.replace(' ', '_')}"
        file = None if folder is None else folder / "curve.json"
        # What an earlier run has seen of a search that this one goes on with.
        points = artifacts.load_json(file) if file is not None and file.exists() else []

        def on_step(state, points=points, file=file):
            queries = int(state.ledger.queries[0])
            rates = [evaded(test, suffix) for suffix in state.buffer.prompts[:, 0]]
            points.append([queries, *rates])
            if file is not None:
                artifacts.save_json(file, points)
            writer.step(queries, evasion=float(np.mean(rates)))

        found = search(
            keys, universal, first, partial(step, oracle=universal, **options), buffer_size=1,
            max_queries=c.universal_queries, stop=False, folder=folder, on_step=on_step,
        )  # fmt: skip
        final = [evaded(test, suffix) for suffix in found.state.buffer.prompts[:, 0]]
        curves[name] = {"points": points, "final": final}
    writer.stage("a suffix for each string", c.own_queries)
    single = language.ClassifierOracle(classify, own[:, None], n_parts=_gcq_detector.N_OUTPUTS)
    alone = search(
        jax.random.split(jax.random.fold_in(key, 1), len(own)), single,
        language.init_prompts(1, "random", n=len(own), suffix_len=m, allowed=allowed),
        partial(steps["position first"], oracle=single, allowed=allowed, max_queries=c.own_queries),
        buffer_size=1, max_queries=c.own_queries,
        on_step=lambda state: writer.step(
            min(int(state.ledger.queries.max()), c.own_queries), solved=int(state.solved.sum())
        ),
    ).state  # fmt: skip
    tails = np.random.default_rng(2).integers(1, size, (len(test), m))
    return Evasion(
        accuracy=accuracy,
        clean=float(1 - classify(test)[1].mean()),
        random_suffix=evaded(test, tails),
        curves=curves,
        own=float(alone.solved.mean()),
        own_queries=float(np.mean(alone.ledger.queries)),
        n_strings=len(test),
    )


if __name__ == "__main__":
    _app.main(run)
