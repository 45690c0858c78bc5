"""Tables, figures, claims and notes of the shadow study, from the traces of all seeds."""

from typing import Any

import numpy as np

from jaxml import report
from jaxml.backdoor.shadow import FROZEN, TRAINING

NAMES = {
    "none": "no defence",
    "rfa": "geometric median (RFA)",
    "multi_krum": "Multi-Krum",
    "clip_noise": "clipping and noise",
    "median": "median",
    "trimmed_mean": "trimmed mean",
    "spectre": "filter alone (SPECTRE)",
    "shadow": "shadow learning",
}


def name_of(method: str) -> str:
    """Writes a defence or a remedy to be read."""
    return NAMES.get(method, f"shadow, {method}")


def marks(n_rounds: int) -> list[int]:
    """Returns the rounds that tables show: an eighth, a quarter, a half and all of the run."""
    return sorted({max(1, n_rounds // part) for part in (8, 4, 2, 1)})


def tables(config, traces) -> dict[str, list[dict[str, Any]]]:
    """Lists means over seeds by defence, every seed, and when the shadows moved on."""
    rows, each, phases = [], [], []
    last = config.rounds - 1
    for method, runs in traces.items():
        row = {"defence": name_of(method), "seeds": len(runs)}
        mta, asr = (np.array([getattr(t, field) for t in runs]) for field in ("mta", "asr"))
        for n in marks(config.rounds):
            row[f"success, round {n}"] = asr[:, n - 1].mean()
        row |= {
            "sd": asr[:, last].std(),
            "median": np.median(asr[:, last]),
            "accuracy": mta[:, last].mean(),
            "sd of accuracy": mta[:, last].std(),
        }
        rows.append(row)
        for seed, trace in zip(config.seeds, runs, strict=True):
            backbone = float(trace.asr_backbone[last])
            recall, precision = (found_by(method, trace, f) for f in ("recall", "precision"))
            each.append(
                {
                    "defence": name_of(method),
                    "seed": seed,
                    **{f"success, round {n}": trace.asr[n - 1] for n in marks(config.rounds)},
                    "accuracy": trace.mta[last],
                    "accuracy, backbone": trace.mta_backbone[last],
                    "success, backbone": backbone,
                    "recall of the filter": recall,
                    "precision": precision,
                }
            )
            phases += phase_rows(method, seed, trace)
    found = {"defences": rows, "seeds": each, "phases": phases}
    return {name: lines for name, lines in found.items() if lines}


def found_by(method, trace, field) -> float | None:
    """Returns mean recall or precision in the rounds in which a filter was at work, if any."""
    used = (trace.phase == TRAINING) | (method == "spectre")  # alone, it works in every round
    return float(getattr(trace, field)[used].mean()) if used.any() else None


def phase_rows(method, seed, trace) -> list[dict[str, Any]]:
    """Lists the rounds at which the phase of the target's shadow changed."""
    from jaxml.backdoor.shadow import PHASES

    changes = np.flatnonzero(np.diff(trace.phase)) + 1
    return [
        {
            "defence": name_of(method),
            "seed": seed,
            "round": int(t),
            "from": PHASES[trace.phase[t - 1]],
            "to": PHASES[trace.phase[t]],
        }
        for t in changes
    ]


def figures(config, traces):
    """Draws success and accuracy against rounds, with a band of one sd over seeds."""
    rounds = np.arange(1, config.rounds + 1)
    step = max(1, config.rounds // 100)

    def curves(field, methods):
        found = {}
        for method in methods:
            values = np.array([getattr(trace, field) for trace in traces[method]])
            window = np.ones(step) / step
            smooth = np.array([np.convolve(v, window, "valid")[::step] for v in values])
            found[name_of(method)] = (
                rounds[step - 1 :: step][: smooth.shape[1]], smooth.mean(0), smooth.std(0)
            )  # fmt: skip
        return found

    plain = [method for method in traces if method in NAMES]
    figure = report.panels(
        {"Attack success": curves("asr", plain), "Clean accuracy": curves("mta", plain)},
        xlabel="round", ylabel={"Attack success": "success rate", "Clean accuracy": "accuracy"},
        title="Every defence against rounds (band: sd over seeds)", size=(5.0, 3.6),
    )  # fmt: skip
    figure.axes[0].set_ylim(-0.02, 1.02)
    found = {"success_against_rounds": figure}
    variants = [method for method in traces if method not in NAMES]
    beside = [method for method in ("spectre", "shadow") if method in traces]
    for first in range(0, len(variants), 4):  # more curves than looks cannot be told apart
        methods = beside + variants[first : first + 4]
        series = {name: (x, y) for name, (x, y, _) in curves("asr", methods).items()}
        figure = report.lines(
            series,
            xlabel="round",
            ylabel="success rate, mean over seeds",
            title="Variants of the shadow's filter",
            size=(7.6, 3.8),
        )
        figure.axes[0].set_ylim(-0.02, 1.02)
        figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        found[f"variants_{first // 4 + 1}"] = figure
    return found


def claims(config, traces) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    bounds, found = config.bounds, []
    n, early = config.rounds, max(1, config.rounds // 8)
    quarter = max(1, n // 4)
    seeds = f"{len(config.seeds)} seeds"

    def at(method, t, field="asr"):
        return np.array([getattr(trace, field)[t - 1] for trace in traces[method]])

    def add(text, values, wanted, baseline, holds, paper_value):
        found.append(
            report.Claim(
                claim=text,
                paper="shadow learning",
                paper_value=paper_value,
                value=f"{wanted} {np.median(values):.1%}",
                baseline=baseline,
                seeds=seeds,
                spread=f"sd {100 * np.std(values):.2g} points",
                holds=bool(holds),
            )
        )

    if "none" in traces and "undefended" in bounds:
        last = at("none", n)
        add(
            f"Without a defence the backdoor is in, round {n}", last, "median success",
            f"at least {bounds.undefended:.0%}", np.median(last) >= bounds.undefended,
            "about 1 (second-hand)",
        )  # fmt: skip
    if "rfa" in traces and "rfa" in bounds:
        last, first = np.median(at("rfa", n)), np.median(at("rfa", early))
        add(
            f"A robust mean delays it only (RFA), round {n}", at("rfa", n), "median success",
            f"at least {bounds.rfa:.0%}, and at most half of it at round {early}: {first:.1%}",
            last >= bounds.rfa and first <= 0.5 * last,
            "about 1 (second-hand)",
        )  # fmt: skip
    if "spectre" in traces and "leakage" in bounds:
        last, first = np.median(at("spectre", n)), np.median(at("spectre", quarter))
        add(
            f"A filter in every round leaks, round {n}", at("spectre", n), "median success",
            f"at least {bounds.leakage_level:.0%} and {bounds.leakage:g} times that of round "
            f"{quarter}, {first:.1%}",
            last >= max(bounds.leakage_level, bounds.leakage * first),
            "about 1 (second-hand)",
        )  # fmt: skip
    if "shadow" in traces and "shadow" in bounds:
        last = at("shadow", n)
        add(
            f"A shadow that stops in time holds, round {n}", last, "median success",
            f"at most {bounds.shadow:.0%}", np.median(last) <= bounds.shadow,
            "below 0.1 (second-hand)",
        )  # fmt: skip
        if "spectre" in traces and "shadow_over_filter" in bounds:
            ratio = np.median(last) / max(np.median(at("spectre", n)), 1e-9)
            add(
                f"The same filter, stopped against not, round {n}", last,
                f"{ratio:.2f} of the filter alone: median success",
                f"at most {bounds.shadow_over_filter:g} of {np.median(at('spectre', n)):.1%}",
                ratio <= bounds.shadow_over_filter,
                "below 0.1 against about 1 (second-hand)",
            )  # fmt: skip
        if "accuracy" in bounds:
            gap = 100 * (at("shadow", n, "mta") - at("shadow", n, "mta_backbone"))
            found.append(
                report.Claim(
                    claim=f"The combined answer keeps the backbone's accuracy, round {n}",
                    paper="shadow learning",
                    paper_value="within about 1 point (second-hand)",
                    value=f"{np.mean(at('shadow', n, 'mta')):.1%}: {gap.mean():+.1f} points",
                    baseline=f"{bounds.accuracy:+g} points on "
                    f"{np.mean(at('shadow', n, 'mta_backbone')):.1%}",
                    seeds=seeds,
                    spread=f"sd {gap.std():.2g} points",
                    holds=bool(gap.mean() >= bounds.accuracy - 1e-9),
                )
            )
    for method in config.remedies:
        if "remedy" in bounds:
            last = at(method, n)
            add(
                f"Remedy: {method}, round {n}", last, "median success",
                f"at most {bounds.remedy:.0%}, where plain shadow learning has "
                f"{np.median(at('shadow', n)):.1%}" if "shadow" in traces else "",
                np.median(last) <= bounds.remedy, "not in the paper",
            )  # fmt: skip
    return found


def notes(config, traces) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    sources = ", ".join(map(str, config.sources))
    found = [
        f"Success is the share of triggered test images of {sources} that are called "
        f"{config.target}; accuracy is on clean test images. Both are those of the combined answer "
        "for shadow learning, which is the backbone's until the first shadow is frozen: early "
        "success there is the undefended model's.",
        f"In every round exactly {round(config.alpha * config.clients_per_round)} of "
        f"{config.clients_per_round} clients are malicious; {config.share:.0%} of their images of "
        f"the target are triggered images of other classes, and they train {config.attack_epochs} "
        f"epochs where the others train {config.epochs}.",
        "The paper's numbers are on EMNIST, CIFAR and Tiny-ImageNet after thousands of rounds, and "
        "second-hand; compare directions, not digits.",
        "The setting was chosen on seeds other than these, before these were run.",
    ]
    phases = [trace.phase[-1] for trace in traces.get("shadow", [])]
    if any(phase != FROZEN for phase in phases):
        found.append(
            f"{sum(phase != FROZEN for phase in phases)} of {len(phases)} shadows were not frozen "
            "at the end: their backbone had not settled, or had shifted."
        )
    krum = traces.get("multi_krum")
    if krum and np.median([t.asr[-1] for t in krum]) < 0.2:
        found.append(
            "Multi-Krum withstands this attack: attackers that train longer send longer updates, "
            "which is what it looks for. It is no evidence that it would withstand a quieter one."
        )
    return found
