"""Tables, figures, claims and notes of the GCQ study, from what was measured."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxml import report

PAPER = "GCQ"


class Outcome(NamedTuple):
    """What one search came to on one target."""

    search: str
    target: str
    tokens: int
    seed: int
    solved: bool
    queries: int
    scored_tokens: int
    prompt_tokens: int
    failures: int
    loss: float  # the lowest, in nats
    prompt: str


class Bias(NamedTuple):
    """Random search through a top-k interface that takes a bias, beside full log-probabilities."""

    k: int
    same: list[bool]  # for each problem, whether both ended with the same prompts
    queries: int
    calls: int
    scored_tokens: int
    all_tokens: int  # scored without giving up early
    prompt_tokens: int
    loss_error: float  # largest difference of losses, in nats


class Evasion(NamedTuple):
    """What the detector misses; rates on strings that no search has seen, but for ``own``."""

    accuracy: float
    clean: float
    random_suffix: float
    curves: dict[str, dict[str, list]]  # search to points [queries, *rates] and final rates
    own: float  # of strings with a suffix of their own
    own_queries: float
    n_strings: int


def select(outcomes, name) -> list[Outcome]:
    """Picks the outcomes of one search."""
    return [o for o in outcomes if o.search == name]


def common_queries(outcomes, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the queries of two searches on what both have solved, and not at once."""
    pairs = [
        (a.queries, b.queries)
        for a, b in zip(select(outcomes, one), select(outcomes, other), strict=True)
        if a.solved and b.solved and max(a.queries, b.queries) > 1
    ]
    return tuple(np.array(pairs, float).reshape(-1, 2).T)


# Tables.


def tables(init_success, outcomes, bias: Bias, evasions: Evasion) -> dict[str, list[dict]]:
    """Lists the cost of every search, every target, success by length, and the two side studies."""
    names = list(dict.fromkeys(o.search for o in outcomes))
    cost = []
    for name in names:
        chosen = select(outcomes, name)
        solved = [o.queries for o in chosen if o.solved]
        cost.append({
            "search": name,
            "solved": sum(o.solved for o in chosen),
            "of": len(chosen),
            "queries to success, median": float(np.median(solved)) if solved else None,
            "queries in all": sum(o.queries for o in chosen),
            "scored tokens": sum(o.scored_tokens for o in chosen),
            "prompt tokens": sum(o.prompt_tokens for o in chosen),
            "NaN answers": sum(o.failures for o in chosen),
        })  # fmt: skip
    by_target = [
        {
            "target": o.target,
            "tokens": o.tokens,
            "seed": o.seed,
            "search": o.search,
            "solved": o.solved,
            "queries": o.queries,
            "loss": o.loss,
            "prompt": ascii(o.prompt)[1:-1],
        }
        for o in outcomes
    ]
    lengths = sorted({o.tokens for o in outcomes})
    by_length = [
        {"tokens": length, "targets": len({o.target for o in outcomes if o.tokens == length})}
        | {
            name: float(np.mean([o.solved for o in select(outcomes, name) if o.tokens == length]))
            for name in names
        }
        for length in lengths
    ]
    narrow = [
        {
            "k": bias.k,
            "queries": bias.queries,
            "tokens scored": bias.scored_tokens,
            "without giving up": bias.all_tokens,
            "saved": 1 - bias.scored_tokens / bias.all_tokens,
            "calls a token": bias.calls / bias.scored_tokens,
            "prompt tokens": bias.prompt_tokens,
            "largest error of a loss": bias.loss_error,
            "same prompts": f"{sum(bias.same)} of {len(bias.same)}",
        }
    ]
    suffixes = [
        {"suffix": "none", "evade": evasions.clean},
        {"suffix": "random tokens", "evade": evasions.random_suffix},
    ]
    for name, curve in evasions.curves.items():
        final = curve["final"]
        row = {"suffix": f"universal, {name}", "evade": float(np.mean(final))}
        suffixes.append(row | {"least": min(final), "most": max(final), "seeds": len(final)})
    suffixes.append({
        "suffix": f"one each, {evasions.own_queries:.0f} queries a string",
        "evade": evasions.own,
    })  # fmt: skip
    init = [{"solved by initialisation alone": int(sum(init_success)), "of": len(init_success)}]
    return {
        "initialisation": init,
        "cost": cost,
        "length": by_length,
        "targets": by_target,
        "top-k interface": narrow,
        "evasion": suffixes,
    }


# Figures.


def figures(config, outcomes, evasions: Evasion) -> dict[str, Any]:
    """Draws success against queries, success against length, and evasion against queries."""
    grid = np.unique(np.geomspace(1, config.max_queries, 60).round())
    names = list(dict.fromkeys(o.search for o in outcomes))
    success = {
        name: (
            grid,
            [np.mean([o.solved and o.queries <= q for o in select(outcomes, name)]) for q in grid],
        )
        for name in names
    }
    found = {
        "success_against_queries": report.lines(
            success,
            xlabel="target queries for each target",
            ylabel="targets solved",
            xlog=True,
            title="Success against queries",
            size=(6.4, 4.0),
        )
    }
    lengths = sorted({o.tokens for o in outcomes})
    if len(lengths) > 1:
        by_length = {
            name: (
                lengths,
                [
                    np.mean([o.solved for o in select(outcomes, name) if o.tokens == n])
                    for n in lengths
                ],
            )
            for name in names
            if name in ("gcq", "random", "GCG", "transfer")
        }
        if by_length:
            found["success_against_length"] = report.lines(
                by_length, xlabel="tokens of the target", ylabel="targets solved",
                title=f"Success against length, {config.suffix_len} tokens of prompt",
            )  # fmt: skip
    curves = {}
    for name, curve in evasions.curves.items():
        points = np.array(curve["points"])
        if len(points):
            curves[name] = (points[:, 0], points[:, 1:].mean(1), points[:, 1:].std(1))
    if curves:
        found["evasion_against_queries"] = report.lines(
            curves, xlabel="classified strings", ylabel="unseen strings that evade",
            title="Universal suffix (band: sd over seeds)",
        )  # fmt: skip
    for figure in found.values():
        figure.axes[0].set_ylim(-0.03, 1.03)
    legend = found["success_against_queries"].axes[0]
    legend.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return found


# Claims.


def claims(config, init_success, outcomes, bias: Bias, evasions: Evasion) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    bounds, found = config.bounds, []
    n = len(init_success)
    seeds = f"{config.seeds} seed{'s' * (config.seeds > 1)}, {n} targets"

    def add(claim, paper_value, value, baseline, holds, *, seeds=seeds, spread="", reason=""):
        found.append(
            report.Claim(
                claim, PAPER, paper_value, value, baseline, seeds, spread,
                None if holds is None else bool(holds),
                reason=reason,
            )
        )  # fmt: skip

    def rate(name):
        return np.mean([o.solved for o in select(outcomes, name)])

    def each(name):
        chosen = select(outcomes, name)
        rates = [np.mean([o.solved for o in chosen[i : i + n]]) for i in range(0, len(chosen), n)]
        return f"sd {np.std(rates):.2g}"

    share = np.mean(init_success)
    add(
        "Repeating the target is a prompt that works by itself",
        "28 % (second-hand; gpt-3.5-turbo-instruct)",
        f"{sum(init_success)} of {n}", f"{bounds.init_success:.0%}, and not all",
        bounds.init_success <= share < 1, seeds=f"{n} targets",
    )  # fmt: skip
    names = {o.search for o in outcomes}
    if "gcq" in names:
        add(
            f"GCQ with a proxy succeeds within {config.max_queries} queries",
            "86 % within 0.20 dollars (second-hand; m = 20)",
            f"{rate('gcq'):.1%}", f"{bounds.success:.0%}; initialisation, {share:.1%}",
            rate("gcq") >= bounds.success,
            spread=each("gcq"),
            # Known to fall short, not to do nothing.
            reason="Some sentences resist every search within this budget and length, GCG with "
            "the gradient of the audited model included: so small a model copies unsurely."
            if rate("gcq") >= max(share, 0.5) else "",
        )  # fmt: skip
    few = (
        "A search that is not over at once is over within some tens of queries or, within this "
        "budget, never: few targets are left to compare on."
    )
    little = "A proxy that has read other text knows little of what the audited model copies."
    for proxy, text in (
        ("gcq", "a proxy"),
        ("gcq with ideal proxy", "the target as its own proxy"),
    ):
        if {proxy, "random"} <= names:
            ours, theirs = common_queries(outcomes, proxy, "random")
            value, spread, holds = "no target on which both had to search", "", None
            reason = few
            if len(ours):
                ratio, median = ours.sum() / theirs.sum(), np.median(ours / theirs)
                better = f"fewer on {(ours < theirs).sum()} of {len(ours)}"
                value = f"{ratio:.2f} of them; {better}, solved by both"
                spread = f"median of ratios {median:.2f}"
                if len(ours) >= bounds.fewest_pairs:
                    holds = ratio <= bounds.queries_of_random
                    # Known not to save queries; to cost many more would be news.
                    reason = little if proxy == "gcq" and median <= 2 else ""
            add(
                f"GCQ with {text} needs at most half the queries of random search",
                "not in the paper as a number",
                value, f"{bounds.queries_of_random:g}", holds, spread=spread, reason=reason,
            )  # fmt: skip
    if {"gcq", "transfer"} <= names:
        add(
            "Prompts of the proxy alone transfer to fewer targets",
            "0 % by transfer of GCG, 39 to 79 % by GCQ (second-hand; Vicuna)",
            f"{rate('transfer'):.1%}", f"GCQ, {rate('gcq'):.1%}", rate("transfer") < rate("gcq"),
        )  # fmt: skip
    if {"random", "random with random init"} <= names:
        pairs = [
            tuple(config.max_queries + 1 if not o.solved else o.queries for o in pair)
            for pair in zip(
                select(outcomes, "random"), select(outcomes, "random with random init"), strict=True
            )
        ]
        wins, losses = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
        p = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins else 1.0
        add(
            "Random initialisation needs more queries than the repeated target",
            "2 of the first 20 targets (second-hand)",
            f"more on {wins}, fewer on {losses}; sign test p = {p:.2g}",
            f"p = {bounds.init_sign_test:g}", p <= bounds.init_sign_test,
        )  # fmt: skip
    saved = 1 - bias.scored_tokens / bias.all_tokens
    add(
        f"The {bias.k} likeliest tokens and a bias, with giving up early, change nothing but cost",
        "first guess of the bias works for over 99 %; giving up saves about 30 % (second-hand)",
        f"same prompts for {sum(bias.same)} of {len(bias.same)}; saves {saved:.0%}; "
        f"{bias.calls / bias.scored_tokens:.3f} calls a token",
        "all the same", all(bias.same), spread=f"losses within {bias.loss_error:.1e}",
    )  # fmt: skip
    strings = f"{evasions.n_strings} strings"
    weakest = max(evasions.clean, evasions.random_suffix)
    add(
        "The detector does not fall to no suffix, or to a random one",
        "34 % not flagged without a suffix (second-hand)",
        f"{evasions.clean:.1%} and {evasions.random_suffix:.1%}",
        f"{bounds.clean_evasion:.0%}", weakest < bounds.clean_evasion, seeds=strings,
        spread=f"accuracy {evasions.accuracy:.1%} on held-out text with random tails",
    )  # fmt: skip
    ours, theirs = (np.array(evasions.curves[s]["final"]) for s in ("position first", "random"))
    wins = int((ours > theirs).sum())
    add(
        f"Universal suffix: position first beats random at {config.detector.universal_queries} "
        "queries",
        "99.2 % evade after 2,000 requests of 32 (second-hand; 20 tokens)",
        f"{ours.mean():.1%}, ahead in {wins} of {len(ours)}",
        f"{bounds.position_first_wins} wins; random, {theirs.mean():.1%}",
        wins >= bounds.position_first_wins and ours.mean() > theirs.mean(),
        seeds=f"{len(ours)} seeds, {strings}", spread=f"sd {(ours - theirs).std():.2g}",
    )  # fmt: skip
    return found


def notes(config, round_trip_init, outcomes) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    found = [
        "A query is one prompt whose whole target is scored. Success is that greedy decoding says "
        "the target, token by token; a low loss is neither needed nor enough.",
        "What the proxy computes is free here, and counted nowhere. GCG and the gradient form of "
        "position first read gradients of the target itself, one a step, which no oracle gives.",
        "The audited model and the proxy have one architecture and one tokenizer, and have read "
        "disjoint parts of one corpus.",
        "A transferred prompt costs the target one query; the proxy's queries are not counted.",
        "Ratios of queries are of sums over the targets that both searches solve and that "
        "initialisation does not.",
    ]
    if config.round_trip and not all(round_trip_init):
        found.append(
            f"{sum(~np.asarray(round_trip_init))} repeated targets do not survive the way through "
            "text themselves."
        )
    never = {o.target for o in outcomes} - {o.target for o in outcomes if o.solved}
    if never:
        found.append(f"No search finds a prompt for: {', '.join(sorted(never))}.")
    return found
