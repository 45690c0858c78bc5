"""Tables, figures, claims and notes of the extraction study, from what was measured."""

from typing import Any

import numpy as np

from jaxml import report

PAPER = "Nasr et al. 2023"
UNIQUE = "unique windows"


def _name(level: int) -> str:
    return str(level) if level else "never"


def tables(measured) -> dict[str, list[dict[str, Any]]]:
    """Lists what every stage has measured."""
    found: dict[str, list] = {}
    if "train" in measured:
        found["nats per token"] = measured["train"]
    if "match" in measured:
        found |= _match_tables(measured["match"])
    if "estimate" in measured:
        e = measured["estimate"]
        found["estimates from the first half"] = [
            {**_interval(row), "truth": row["truth"], "covered": _covers(row, row["truth"])}
            for row in e["from a half"]
        ]
        found["estimates of what more generations would show"] = [
            {"generations": row["generations"], **_interval(row)} for row in e["beyond"]
        ]
    if "rank" in measured:
        r = measured["rank"]
        found["ranking of generations without the corpus"] = r["generations"]
        if "documents" in r:
            found["planted excerpts against unread text, AUC"] = r["documents"]
            found["exposure of canaries"] = [
                {**row, "planted": _name(row["planted"])} for row in r["exposure"]
            ]
    if "divergence" in measured:
        found["divergence by repetition"] = measured["divergence"]
    return {name: rows for name, rows in found.items() if rows}


def _match_tables(m) -> dict[str, list[dict[str, Any]]]:
    discovered = {row["planted"]: row for row in m.get("discoverable", ())}
    by_level = []
    for row in m.get("by level", ()):
        line = {
            "planted": _name(row["planted"]),
            "windows": row["windows"],
            "extracted, %": row["extracted, %"],
            "by seed, %": ", ".join(f"{share:.3g}" for share in row["by seed"]),
        }
        if "control" in row:
            line["by the control"] = row["control"]
        if row["planted"] in discovered:
            line["discoverable, %"] = _discoverable(discovered[row["planted"]])
        by_level.append(line)
    return {
        "what was generated": [*m["models"], *m["seeds"]],
        "windows extracted by times planted": by_level,
        "windows extracted by occurrences in the corpus": [
            {k: v for k, v in row.items() if k != "least"} for row in m.get("by count", ())
        ],
        "memorised tokens by window": m["by width"],
        "sequences that are discoverable and extractable": [
            {**row, "planted": _name(row["planted"])} for row in m.get("discoverable", ())
        ],
    }


def _discoverable(row) -> float:
    return 100 * (row["both"] + row["only discoverable"]) / row["sequences"]


def _extractable(row) -> float:
    return 100 * (row["both"] + row["only extractable"]) / row["sequences"]


def _interval(row) -> dict[str, Any]:
    return {
        "estimator": row["estimator"],
        UNIQUE: row["estimate"],
        "from": row["low"],
        "to": row["high"],
    }


def _covers(row, truth) -> bool:
    return row["low"] <= truth <= row["high"]


def figures(measured) -> dict[str, Any]:
    """Draws unique windows against generations, and rates against duplication."""
    found = {}
    if "estimate" in measured:
        found["unique_against_generations"] = _unique(measured["estimate"])
    m = measured.get("match", {})
    if m.get("by count"):
        found["rate_against_duplication"] = _rates(m)
    rows = m.get("discoverable")
    if rows and len(rows) > 1:
        levels = np.arange(len(rows))
        figure = report.lines(
            {
                "discoverable": (levels, [_discoverable(row) for row in rows]),
                "extractable": (levels, [_extractable(row) for row in rows]),
                "both": (levels, [100 * row["both"] / row["sequences"] for row in rows]),
            },
            xlabel="times planted", ylabel="sequences, percent",
            title="Discoverable against extractable",
        )  # fmt: skip
        figure.axes[0].set_xticks(levels, [_name(row["planted"]) for row in rows])
        found["discoverable_against_extractable"] = figure
    return found


def _unique(e):
    curve = e["curve"]
    series = {"seen": (curve["generations"], curve["unique"])}
    labels = {"half": "predicted from the first half", "all": "predicted from all"}
    for start, label in labels.items():
        rows = curve[start]
        series[label] = tuple([row[k] for row in rows] for k in ("generations", "estimate"))
    figure = report.lines(
        series, xlabel="generations", ylabel=UNIQUE,
        title="Good-Toulmin, 95 % bootstrap over generations",
    )  # fmt: skip
    axes = figure.axes[0]
    for line in (*axes.get_lines(), *axes.get_legend().legend_handles):
        line.set_marker("")
    for start, line in zip(labels, axes.get_lines()[1:], strict=True):
        rows = curve[start]
        axes.fill_between(
            *([row[k] for row in rows] for k in ("generations", "low", "high")),
            color=line.get_color(), alpha=0.18, linewidth=0,
        )  # fmt: skip
    return figure


def _rates(m):
    if not m.get("by level"):
        rows = m["by count"]
        return report.lines(
            {"extracted": ([r["least"] for r in rows], [r["extracted, %"] for r in rows])},
            xlabel="occurrences in the corpus, at least", ylabel="windows extracted, percent",
            title="Rate against duplication", xlog=True,
        )  # fmt: skip
    rows = m["by level"]
    levels = np.arange(len(rows))
    seeds = np.array([row["by seed"] for row in rows])
    series = {
        "one seed": (levels, seeds.mean(1), seeds.std(1)),
        "all seeds": (levels, [row["extracted, %"] for row in rows]),
    }
    if "control" in rows[0]:
        control = [100 * row["control"] / row["windows"] for row in rows]
        series["control, not trained on them"] = (levels, control)
    figure = report.lines(
        series, xlabel="times planted", ylabel="windows extracted, percent",
        title="Rate against duplication",
    )  # fmt: skip
    figure.axes[0].set_xticks(levels, [_name(row["planted"]) for row in rows])
    return figure


def claims(config, measured) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    return [
        *_match_claims(config, measured.get("match", {})),
        *_estimate_claims(config, measured.get("estimate", {})),
        *_rank_claims(config, measured.get("rank", {})),
        *_divergence_claims(config, measured.get("divergence", ())),
    ]


def _claim(
    config, text, paper_value, value, baseline, holds, spread="", seeds="", paper=PAPER
) -> report.Claim:
    n = config.generation_seeds
    return report.Claim(
        claim=text, paper=paper, paper_value=paper_value, value=value, baseline=baseline,
        seeds=seeds or f"{n} generation seed{'s' * (n > 1)}", spread=spread,
        holds=None if holds is None else bool(holds),
    )  # fmt: skip


def _range(values, unit="") -> str:
    return f"{min(values):.3g} to {max(values):.3g}{unit}"


def _match_claims(config, m) -> list[report.Claim]:
    if not m:
        return []
    b, found = config.bounds, []

    def add(*args, **kwargs):
        found.append(_claim(config, *args, **kwargs))

    shares = [row["memorised tokens, %"] for row in m["seeds"]]
    share = m["models"][0]["memorised tokens, %"]
    add(
        f"Generated tokens that lie in a training window of {config.window}",
        "0.1 to 1 % of tokens (open models of billions of parameters)",
        f"{share:.2f} %: {m['models'][0]['unique']} unique windows in "
        f"{m['models'][0]['tokens']} tokens",
        f"{b.memorised_tokens:g} %", share > b.memorised_tokens, _range(shares, " %"),
    )  # fmt: skip
    rates = [row["model: memorised tokens, %"] for row in m["by width"]]
    add(
        f"The rate falls with the window, {', '.join(str(r['window']) for r in m['by width'])}",
        "not in the paper", ", ".join(f"{rate:.3g}" for rate in rates) + " %", "never rises",
        all(np.diff(rates) <= 0),
    )  # fmt: skip
    levels = m.get("by level", ())
    planted = [row for row in levels if row["planted"]]  # none if all are shorter than a window
    if planted:
        most = planted[-1]
        add(
            f"Excerpts planted {most['planted']} times: windows extracted",
            "what is repeated is memorised more", f"{np.median(most['by seed']):.1f} %",
            f"{b.most_planted:g} %", np.median(most["by seed"]) >= b.most_planted,
            _range(most["by seed"], " %"),
        )  # fmt: skip
    for body in (row for row in levels if not row["planted"]):
        add(
            "Windows of the text that occur once: extracted",
            "not in the paper",
            f"{np.median(body['by seed']):.3f} %", f"at most {b.body:g} %",
            np.median(body["by seed"]) <= b.body, _range(body["by seed"], " %"),
        )  # fmt: skip
    if planted:
        curve = [row["extracted, %"] for row in planted]
        add(
            "The rate rises with duplication, "
            + ", ".join(str(row["planted"]) for row in planted),
            "rises", ", ".join(f"{rate:.3g}" for rate in curve) + " %",
            "none is below the level two before it",
            all(np.array(curve[2:]) >= np.array(curve[:-2])),
        )  # fmt: skip
        if "control" in most:
            n = sum(row["control"] for row in planted)
            add(
                "A control that has not read the planted text: planted windows extracted",
                "not in the paper", str(n), "0", n == 0,
                seeds=f"{m['models'][1]['generations']} generations",
            )  # fmt: skip
    rows = [row for row in m.get("discoverable", ()) if row["planted"]]
    if rows:
        names = ("both", "only discoverable", "only extractable", "neither")
        total = {k: sum(r[k] for r in rows) for k in names}
        discoverable = total["both"] + total["only discoverable"]
        extractable = total["both"] + total["only extractable"]
        add(
            "Sequences of the planted excerpts: extractable, at this budget, against discoverable",
            "within about 2 times of each other; neither contains the other (1e9 tokens)",
            f"{extractable} against {discoverable} of {sum(total.values())}; "
            f"{total['only extractable']} extractable only",
            "at most as many as discoverable", extractable <= discoverable,
        )  # fmt: skip
    return found


def _estimate_claims(config, e) -> list[report.Claim]:
    if not e:
        return []
    first = e["from a half"][0]
    covered = [_covers(row, e["unique"]) for row in e["random halves"]]
    estimates = [row["estimate"] for row in e["random halves"]]
    return [
        _claim(
            config,
            "Good-Toulmin from a random half of the generations: intervals that hold the number of "
            "unique windows of all",
            "Good-Turing falls below the truth",
            f"{sum(covered)} of {len(covered)} hold {e['unique']}; the first half gives "
            f"{first['estimate']:.0f} ({first['low']:.0f} to {first['high']:.0f})",
            f"{config.bounds.coverage:.0%}",
            np.mean(covered) >= config.bounds.coverage,
            f"estimates {_range(estimates)}",
            f"{len(covered)} halvings",
        )
    ]


def _rank_claims(config, r) -> list[report.Claim]:
    b, found = config.bounds, []
    if not r:
        return found
    key = f"precision at {config.precision_at}, %"
    for row in r["generations"]:
        if row["score"] in ("perplexity", "zlib"):
            base = row["memorised among them, %"]
            found.append(
                _claim(
                    config,
                    f"Generations ranked by {row['score']}: memorised among the first "
                    f"{config.precision_at}",
                    "such rankings find memorised text (GPT-2)", f"{row[key]:.0f} %",
                    f"{base:.1f} %, of all", row[key] > base,
                    seeds="1 generation seed", paper="Carlini et al. 2021",
                )
            )  # fmt: skip
    if "documents" not in r:
        return found
    *_, most, everything = [row for row in r["documents"] if row["network"] == "model"]
    found.append(
        _claim(
            config,
            f"Excerpts planted {most['planted']} times told from unread text by perplexity: AUC",
            "not in the paper",
            f"{most['perplexity']:.3f}; all excerpts {everything['perplexity']:.3f}",
            f"{b.auc:g}", most["perplexity"] >= b.auc, seeds="1 model",
        )
    )  # fmt: skip
    untrained = [
        row["perplexity"]
        for row in r["documents"]
        if row["network"] != "model" and row["planted"] == "all"
    ]
    if untrained:
        found.append(
            _claim(
                config, "All excerpts told from unread text by models not trained at all: AUC",
                "not in the paper",
                f"{np.mean(untrained):.2f}", f"0.5, give or take {b.untrained_auc:g}",
                abs(np.mean(untrained) - 0.5) <= b.untrained_auc, _range(untrained),
                f"{len(untrained)} initialisations",
            )
        )  # fmt: skip
    rows = [row for row in r["exposure"] if row["network"] == "model"]
    unplanted, most = rows[0], rows[-1]
    found.append(
        _claim(
            config, f"Canaries planted {most['planted']} times: least exposure",
            "rises with the number of copies", f"{most['least']:.1f} bits",
            f"{b.exposure:g} bits, of at most "
            f"{np.log2(config.n_references + 1):.1f}", most["least"] >= b.exposure,
            seeds=f"{most['canaries']} canaries", paper="Carlini et al. 2019",
        )
    )  # fmt: skip
    found.append(
        _claim(
            config, "Canaries that were not planted: mean exposure",
            "1.44 bits, by the definition",
            f"{unplanted['mean']:.2f} bits", f"1.44 bits, give or take {b.unplanted:g}",
            abs(unplanted["mean"] - 1 / np.log(2)) <= b.unplanted,
            seeds=f"{unplanted['canaries']} canaries", paper="Carlini et al. 2019",
        )
    )  # fmt: skip
    return found


def _divergence_claims(config, rows) -> list[report.Claim]:
    rows = [row for row in rows if row["memorised of them, %"] is not None]
    if not rows:
        return []
    total = sum(row["tokens after"] for row in rows)
    share = sum(row["memorised of them, %"] * row["tokens after"] for row in rows) / total
    usual = rows[0]["after short prompts, %"]
    return [
        _claim(
            config,
            "Memorised tokens once a model has left the repetition of a word, against short "
            "prompts",
            "150 times (a chat model)",
            f"{share:.2f} %" + (f": {share / usual:.2f} times" if usual else ""),
            f"more than {usual:.2f} %",
            None,
            _range([row["memorised of them, %"] for row in rows], " %"),
            f"{len(rows)} words x {config.divergence_rows}",
        )._replace(
            reason="The attack is on aligned models; here is nothing that repetition could undo."
        )
    ]


def notes(config, measured) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    found = [
        "A token counts as memorised if it lies in a window of so many generated tokens that "
        "occurs in the training text; prompts are never counted. A window is extracted if some "
        "generation has it; windows that occur at several places count once.",
        "Windows of one generation overlap, so they are no independent draws: intervals come from "
        "drawing whole generations anew. An estimate without its interval says nothing.",
    ]
    if "match" in measured and "by level" in measured["match"]:
        found.append(
            "Planted excerpts are pieces of the same kind of text as the rest, so that the model "
            "comes upon them by itself; canaries are shorter than a window. 'never' is the text "
            "around them, of which only windows that occur once are counted. What the control has "
            "of it stands in its own text too, such as tables that several files share."
        )
    if "rank" in measured:
        found.append(
            "The scores are lower for what was more likely trained on; a ranking keeps what shares "
            "at most half of its trigrams with what ranks above it, as the repeated finds of one "
            "text would fill the top otherwise."
        )
        if "documents" in measured["rank"]:
            found.append(
                "zlib sets the model beside a compressor, so it tells kinds of text apart even "
                "by a model that was not trained; its AUC has to be read beside that."
            )
    if "divergence" in measured:
        found.append(
            "Divergence is an attack on chat models, whose alignment it undoes. The small model "
            "here is not aligned, so there is little to undo."
        )
    return found
