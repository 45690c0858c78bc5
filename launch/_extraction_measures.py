"""What the extraction study measures, stage by stage; arrays in, arrays and plain values out."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import language
from jaxml.core.rng import named_key, numpy_generator
from jaxml.data import text, tokenizers
from launch._extraction_target import Target, is_given

PLANTED = re.compile(r"(excerpt|canary)/(\d+)/\d+")
SLICE = 96
N_SLICES = 200


def levels(config, names) -> np.ndarray:
    """Returns how often each document was planted, 0 for one that was not."""
    if is_given(config):
        return np.zeros(len(names), np.int64)
    matches = map(PLANTED.fullmatch, names)
    return np.array([int(m[2]) if m else 0 for m in matches], np.int64)


def slices(documents, *, length: int, n: int) -> list[np.ndarray]:
    """Cuts documents into at most ``n`` pieces of one length, from as many documents as it can."""
    pieces = [
        (start, i, document[start : start + length])
        for i, document in enumerate(documents)
        for start in range(0, len(document) - length + 1, length)
    ]
    return [np.asarray(piece) for _, _, piece in sorted(pieces, key=lambda p: p[:2])[:n]]


def losses(target: Target, model, control, config) -> list[dict[str, Any]]:
    """Measures nats per token on text that was trained on and on text that was not."""
    length = min(SLICE, target.context - 1)
    level = levels(config, target.corpus.names)
    some = np.flatnonzero(level == 0)[: 4 * N_SLICES]
    kinds = {
        "training text": slices(map(target.corpus.read, some), length=length, n=N_SLICES),
        "held-out text": slices(target.held_out, length=length, n=N_SLICES),
    }
    rows = []
    for name, variables in (("model", model), ("control", control)):
        if variables is None:
            continue
        rows.append({"model": name})
        for kind, pieces in kinds.items():
            if pieces:
                nll = _nll(target, variables, pieces, config)
                rows[-1][kind] = float(np.mean(np.concatenate(nll)))
    return rows


def _nll(target: Target, variables, documents, config) -> list[np.ndarray]:
    return language.document_nll(
        target.model, variables, documents,
        bos=target.bos, context=target.context, batch_size=config.batch_size,
    )  # fmt: skip


# Match.


def match(target: Target, variables, generated, config, writer):
    """Matches the generations with the corpus, and finds what is discoverable."""
    tokens = np.concatenate(generated["tokens"])
    groups = {"model": tokens}
    if "control" in generated:
        groups["control"] = generated["control"]
    in_memory = config.index == "window"
    documents = language.join_documents(list(target.corpus)) if in_memory else None
    widths = sorted({config.window, *config.widths})
    writer.stage("match", len(widths))
    by_width, matches = [], {}
    joined = {name: language.join_documents(list(rows)) for name, rows in groups.items()}
    for i, width in enumerate(widths):
        row = {"window": width}
        for name, rows in _match_width(target, documents, joined, width, config).items():
            count = language.memorised_tokens(joined[name], rows, width)
            row[f"{name}: memorised tokens, %"] = 100 * float(count.sum()) / groups[name].size
            if width == config.window:
                matches[name] = rows
        by_width.append(row)
        writer.step(i + 1)
    hits = {name: language.find_hits(joined[name], found) for name, found in matches.items()}
    memorised = {
        name: language.memorised_tokens(joined[name], found, config.window)
        for name, found in matches.items()
    }
    spans = language.find_spans(joined["model"], matches["model"], config.window)
    arrays = {
        **hits["model"]._asdict(),
        "memorised": memorised["model"],
        "spans": np.array(spans, np.int64).reshape(-1, 5),
    }
    measured = {
        "corpus": {
            "documents": len(target.corpus.names),
            "tokens": matches["model"].n_tokens,
            "index": config.index,
        },
        "models": [
            _summary(name, hits[name], memorised[name], groups[name].shape) for name in groups
        ],
        "seeds": _by_seed(hits["model"], memorised["model"], config),
        "by width": by_width,
        "longest": max((span.length for span in spans), default=0),
    }
    if in_memory:
        windows = language.corpus_windows(documents, config.window)
        measured["by count"] = _by_count(windows, hits["model"])
        if not is_given(config):
            measured["by level"] = _by_level(windows, target, hits, config)
        measured["discoverable"] = _discoverable(target, variables, tokens, config)
    return arrays, measured


def _match_width(target, documents, joined, width, config):
    if documents is None:
        return {
            name: language.match_stream(
                rows, width, target.corpus.blocks(), block_size=config.block_size
            )
            for name, rows in joined.items()
        }
    index = language.build_window_index(documents, width, n_shards=config.shards)
    return {name: language.match_index(index, rows) for name, rows in joined.items()}


def _summary(name, hits, memorised, shape) -> dict[str, Any]:
    return {
        "model": name,
        "generations": shape[0],
        "tokens": shape[0] * shape[1],
        "memorised tokens, %": 100 * float(memorised.sum()) / (shape[0] * shape[1]),
        "generations with a hit, %": 100 * float((memorised > 0).mean()),
        "hits": len(hits.thing),
        "unique": len(np.unique(hits.thing)),
    }


def _by_seed(hits, memorised, config) -> list[dict[str, Any]]:
    n = config.n_generations
    seed = hits.generation // n
    return [
        _summary(f"seed {s}", language.Hits(*(a[seed == s] for a in hits)),
                 memorised[s * n : (s + 1) * n], (n, config.n_tokens))
        for s in range(config.generation_seeds)
    ]  # fmt: skip


def _distinct(hits: language.Hits) -> np.ndarray:
    """Chooses one hit of every distinct window."""
    return np.unique(hits.thing, return_index=True)[1]


def _by_count(windows, hits) -> list[dict[str, Any]]:
    """Counts windows and those extracted by how often they occur, 1, 2-3, 4-7, ..."""
    bins, extracted = (
        np.bincount(np.log2(count).astype(int))
        for count in (windows.count, np.append(hits.count[_distinct(hits)], 1))
    )
    extracted[0] -= 1
    extracted = np.pad(extracted, (0, len(bins) - len(extracted)))
    return [
        {
            "occurrences": str(2**i) if i == 0 else f"{2**i} to {2 ** (i + 1) - 1}",
            "least": 2**i,
            "windows": int(n),
            "extracted": int(k),
            "extracted, %": 100 * k / n,
        }
        for i, (n, k) in enumerate(zip(bins, extracted, strict=True))
        if n
    ]


def _by_level(windows, target, hits, config) -> list[dict[str, Any]]:
    """Says what share of the windows of each planted level was extracted, and of the body."""
    level = levels(config, target.corpus.names)
    n_seeds = config.generation_seeds

    def extracted(hits, chosen, once=False):
        pick = _distinct(hits)
        here = (level[hits.document[pick]] == chosen) & ((hits.count[pick] == 1) | (not once))
        return int(here.sum())

    rows = []
    for chosen in (0, *np.unique(level[level > 0]).tolist()):
        once = chosen == 0
        here = (level[windows.document] == chosen) & ((windows.count == 1) | (not once))
        n = int(here.sum())
        if not n:
            continue
        seed = hits["model"].generation // config.n_generations
        by_seed = [
            100 * extracted(language.Hits(*(a[seed == s] for a in hits["model"])), chosen, once) / n
            for s in range(n_seeds)
        ]
        rows.append({
            "planted": chosen,
            "windows": n,
            "extracted, %": 100 * extracted(hits["model"], chosen, once) / n,
            "by seed": by_seed,
        })  # fmt: skip
        if "control" in hits:
            rows[-1]["control"] = extracted(hits["control"], chosen, once)
    return rows


def _discoverable(target, variables, tokens, config) -> list[dict[str, Any]]:
    """Counts sequences of the corpus that are discoverable, extractable, both or neither."""
    length = config.prefix_length + config.suffix_length
    level = levels(config, target.corpus.names)
    sequences, of_level = [], []
    for chosen in np.unique(level):
        numbers = np.flatnonzero(level == chosen)
        if chosen:  # the copies are all alike
            names = {target.corpus.names[i]: i for i in numbers}
            numbers = sorted(names.values())
        documents = [np.asarray(target.corpus.read(i)) for i in numbers]
        n_places = np.array([max(len(d) - length + 1, 0) for d in documents])
        ends = np.cumsum(n_places)
        # Evenly from all of them.
        n = min(config.n_sequences, int(ends[-1]))
        picks = np.linspace(0, ends[-1] - 1, n).round().astype(np.int64)
        for i, place in zip(np.searchsorted(ends, picks, side="right"), picks, strict=True):
            start = place - (ends[i] - n_places[i])
            sequences.append(documents[i][start : start + length])
            of_level.append(int(chosen))
    if not sequences:
        return []
    sequences, of_level = np.stack(sequences).astype(np.int32), np.array(of_level)
    prompts, suffixes = np.split(sequences, [config.prefix_length], axis=1)
    prompts = np.pad(prompts, ((0, 0), (1, 0)), constant_values=target.bos)
    found = language.discoverable(
        target.model, variables, prompts, suffixes,
        banned=(target.bos,), batch_size=config.batch_size,
    )  # fmt: skip
    index = language.build_window_index(language.join_documents(list(tokens)), config.suffix_length)
    extractable = language.contains(index, suffixes)
    return [
        {
            "planted": int(chosen),
            "sequences": int((of_level == chosen).sum()),
            "both": int((found & extractable)[of_level == chosen].sum()),
            "only discoverable": int((found & ~extractable)[of_level == chosen].sum()),
            "only extractable": int((~found & extractable)[of_level == chosen].sum()),
            "neither": int((~found & ~extractable)[of_level == chosen].sum()),
        }
        for chosen in np.unique(of_level)
    ]


# Estimate.


def _estimators(key, t: float):
    """Returns name -> estimator of how many new things ``t n`` further draws show."""

    def sequential(f):
        counts = np.repeat(np.arange(1, f.size + 1), f)
        n_extra = round(t * counts.sum())
        if not n_extra:
            return 0.0
        new = language.sequential_good_turing(key, counts, n_extra)[-1] - counts.size
        # It has no ceiling of its own.
        return float(min(new, language.chao1(f).total - counts.size))

    found = {
        "Good-Toulmin" + (", smoothed" if t > 1 else ""): lambda f: language.good_toulmin(f, t)
    }
    if t <= 1:  # beyond that Chao1 decides
        found["sequential Good-Turing, at most Chao1"] = sequential
    return found


def _unseen(f) -> float:
    """Estimates how many things there are beyond those seen."""
    return language.chao1(f).total - float(f.sum())


def estimate(key, matched, config) -> dict[str, Any]:
    """Predicts the whole sample's unique windows from parts of it, and what lies beyond it."""
    n = config.n_generations * config.generation_seeds
    hits = language.Hits(*(matched[name] for name in language.Hits._fields))
    unique = int(language.unique_curve(hits, n)[-1])

    def interval(name, generation, thing, estimator, n_generations):
        return language.bootstrap_unique(
            named_key(key, name), generation, thing, estimator,
            n_generations=n_generations, n_resamples=config.n_resamples,
        )._asdict()  # fmt: skip

    half = n // 2
    first = hits.generation < half
    sample = hits.generation[first], hits.thing[first]
    check = [
        {"estimator": name, **interval(name, *sample, estimator, half), "truth": unique}
        for name, estimator in _estimators(key, 1.0).items()
    ]
    halves = []
    rng = numpy_generator(named_key(key, "halves"))
    for i in range(config.n_halves):
        number = np.full(n, -1)
        chosen = rng.permutation(n)[:half]
        number[chosen] = np.arange(half)
        here = number[hits.generation] >= 0
        halves.append(
            interval(f"half {i}", number[hits.generation[here]], hits.thing[here],
                     lambda f: language.good_toulmin(f, 1.0), half)
        )  # fmt: skip
    beyond = []
    for factor in config.factors:
        for name, estimator in _estimators(key, factor - 1.0).items():
            row = interval(f"{name} {factor}", hits.generation, hits.thing, estimator, n)
            beyond.append({"generations": f"{factor:g} times as many", "estimator": name, **row})
    row = interval("Chao1", hits.generation, hits.thing, _unseen, n)
    beyond.append({"generations": "any number", "estimator": "Chao1, lower bound", **row})
    beyond += _mark_recapture(rng, hits, n)
    f = language.frequencies(np.bincount(hits.thing, minlength=1))
    points = np.unique(np.linspace(0, n, 60).round().astype(int))
    steps = np.linspace(0.2, 1, 5)
    return {
        "unique": unique,
        "missing mass": language.good_turing_missing_mass(f),
        "from a half": check,
        "random halves": halves,
        "beyond": beyond,
        "curve": {
            "generations": points,
            "unique": language.unique_curve(hits, n)[points],
            **{
                start: [
                    {"generations": m * (1 + t), **interval(
                        f"curve {start} {t}", *some, lambda f, t=t: language.good_toulmin(f, t), m)}
                    for t in steps
                ]
                for start, some, m in (
                    ("half", sample, half), ("all", (hits.generation, hits.thing), n),
                )
            },
        },
    }  # fmt: skip


def _mark_recapture(rng, hits, n) -> list[dict[str, Any]]:
    """Compares the halves of many random halvings."""
    totals = []
    for _ in range(200):
        side = rng.permutation(n) < n // 2
        one, other = (np.unique(hits.thing[side[hits.generation] == s]) for s in (True, False))
        both = len(np.intersect1d(one, other))
        totals.append(language.mark_recapture(len(one), len(other), both))
    totals = [total for total in totals if total is not None]
    if not totals:
        return []
    low, middle, high = np.quantile(totals, [0.025, 0.5, 0.975])
    return [{
        "generations": "any number", "estimator": "mark-recapture of 200 random halvings",
        "estimate": middle, "low": low, "high": high,
    }]  # fmt: skip


# Rank.


def rank(key, target: Target, variables, generated, matched, config, writer):
    """Ranks the first seed's generations by membership scores; exposure of what is planted."""
    model, control = variables
    writer.stage("score generations", 3)
    tokens = generated["tokens"][0][: config.n_ranked]
    memorised = matched["memorised"][: len(tokens)] > 0
    whole = np.concatenate([generated["prompts"][0][: len(tokens), 1:], tokens], axis=1)
    scores = _scores(target, model, control, list(whole), config, skip=config.prompt_length)
    writer.step(1)
    rows, order = [], None
    for name, values in scores.items():
        kept = language.drop_near_duplicates(np.argsort(values, kind="stable"), tokens)
        if name == "zlib" or order is None:
            order = kept
        k = min(config.precision_at, len(kept))
        rows.append({
            "score": name,
            "generations": len(tokens),
            "after deduplication": len(kept),
            "memorised among them, %": 100 * float(memorised[kept].mean()),
            f"precision at {config.precision_at}, %":
                100 * language.precision_at(memorised[kept], k),
            "AUC": _auc(values[memorised], values[~memorised]),
        })  # fmt: skip
    measured = {"generations": rows}
    writer.step(2)
    if not is_given(config):
        measured["documents"] = _documents(key, target, model, control, config)
        measured["exposure"] = _exposure(target, model, control, config)
    writer.step(3)
    return {**scores, "order": order, "memorised": memorised}, measured


def _scores(target, model, control, documents, config, *, skip=0) -> dict[str, np.ndarray]:
    """Scores documents, without their first ``skip`` tokens."""
    texts = lower = reference = None
    nll = [row[skip:] for row in _nll(target, model, documents, config)]
    if control is not None:
        reference = [row[skip:] for row in _nll(target, control, documents, config)]
    if target.tokenizer is not None:
        texts = [tokenizers.decode(target.tokenizer, d[skip:]) for d in documents]
        lowered = tokenizers.encode(target.tokenizer, [t.lower() or " " for t in texts])
        lower = _nll(target, model, lowered, config)
    scores = language.membership_scores(
        nll, texts=texts, lower=lower, reference=reference, window=config.window
    )
    return {name: a for name, a in scores._asdict().items() if a is not None}


def _auc(members, others) -> float | None:
    return language.auc(members, others) if len(members) and len(others) else None


def _documents(key, target, model, control, config) -> list[dict[str, Any]]:
    """Tells planted excerpts from held-out text of about their length, by each score."""
    names = target.corpus.names
    excerpts = {n: i for i, n in enumerate(names) if n.startswith("excerpt/")}
    documents = [target.corpus.read(i) for i in excerpts.values()]
    level = levels(config, tuple(excerpts))
    length = min(round(float(np.mean([len(d) for d in documents]))), target.context - 1)
    others = slices(target.held_out, length=length, n=N_SLICES)
    everything = [*documents, *others]
    networks = {"model": model}
    untrained = jax.jit(target.model.init)
    for seed in range(config.untrained_seeds):
        networks[f"untrained {seed}"] = untrained(
            jax.random.fold_in(key, seed), jnp.zeros((1, 2), jnp.int32)
        )
    rows = []
    for name, variables in networks.items():
        scores = _scores(
            target, variables, control if name == "model" else None, everything, config
        )
        of_level = {str(k): level == k for k in np.unique(level)}
        of_level["all"] = level > 0
        if name != "model":
            of_level = dict(list(of_level.items())[-2:])
        for chosen, here in of_level.items():
            rows.append({"network": name, "planted": chosen} | {
                score: _auc(values[: len(level)][here], values[len(level) :])
                for score, values in scores.items()
            })  # fmt: skip
    return rows


def _exposure(target, model, control, config) -> list[dict[str, Any]]:
    """Measures the exposure of the planted canaries, and of some that were not planted."""
    planted = text.canaries(0, n_per_level=config.lm.canaries_per_level)
    references = text.canaries(1, levels=(1,), n_per_level=config.n_references)
    strangers = text.canaries(2, levels=(1,), n_per_level=64)
    groups = [
        tokenizers.encode(target.tokenizer, [d.decode() for d in group.documents])
        for group in (planted, references, strangers)
    ]
    rows = []
    for name, variables in (("model", model), ("control", control)):
        nll = _nll(target, variables, list(itertools.chain(*groups)), config)
        ours, theirs, unseen = np.split(
            np.array([row.sum() for row in nll]), np.cumsum([len(group) for group in groups[:2]])
        )
        bits = {
            "exposure, bits": language.exposure(np.append(ours, unseen), theirs),
            "skew-normal, bits": language.exposure_skew_normal(np.append(ours, unseen), theirs),
        }
        copies = np.append(planted.copies, np.zeros(len(unseen), np.int64))
        for chosen in np.unique(copies):
            rows.append({
                "network": name, "planted": int(chosen), "canaries": int((copies == chosen).sum()),
                **{k: float(np.median(v[copies == chosen])) for k, v in bits.items()},
                "least": float(bits["exposure, bits"][copies == chosen].min()),
                "mean": float(bits["exposure, bits"][copies == chosen].mean()),
            })  # fmt: skip
    return rows


# Divergence.


def divergence(key, target: Target, model, matched, config) -> list[dict[str, Any]]:
    """Lets the model repeat words, and matches only what it says after it has stopped."""
    words = [tuple(w) for w in config.word_ids]
    labels = [str(list(word)) for word in words]
    if target.tokenizer is not None:
        words += [tuple(ids.tolist())
                  for ids in tokenizers.encode(target.tokenizer, config.words)]  # fmt: skip
        labels += [repr(word) for word in config.words]
    n = config.divergence_rows
    if not words or not n:
        return []
    room = config.divergence_prompt
    # Whole repeats at the end, so that all prompts have one length.
    prompts = [language.divergence_prompt(word, room // len(word) + 1)[-room:] for word in words]
    prompts = np.pad(np.repeat(np.stack(prompts), n, axis=0), ((0, 0), (1, 0)),
                     constant_values=target.bos)  # fmt: skip
    tokens = language.generate(
        jax.random.split(key, len(prompts)), target.model, model, prompts,
        n_tokens=target.context - prompts.shape[1], top_k=config.top_k or None,
        temperature=config.temperature, banned=(target.bos,), batch_size=config.batch_size,
    )  # fmt: skip
    stops = np.concatenate([
        language.split_after_repeats(tokens[i * n : (i + 1) * n], word)
        for i, word in enumerate(words)
    ])  # fmt: skip
    rest = [row[stop:] for row, stop in zip(tokens, stops, strict=True)]
    memorised = np.zeros(len(rest), np.int64)
    (left,) = np.nonzero([len(row) > 0 for row in rest])
    if max(map(len, rest)) >= config.window:
        after = language.join_documents([rest[i] for i in left])
        documents = None
        if config.index == "window":
            documents = language.join_documents(list(target.corpus))
        found = _match_width(target, documents, {"": after}, config.window, config)[""]
        memorised[left] = language.memorised_tokens(after, found, config.window)
    lengths = np.array([len(row) for row in rest])
    usual = _share_of_first(matched, min(round(lengths.mean()), config.n_tokens), config)
    rows = []
    for i, label in enumerate(labels):
        some = slice(i * n, (i + 1) * n)
        total = int(lengths[some].sum())
        rows.append({
            "word": label,
            "tokens of the word": len(words[i]),
            "repeats in the prompt": room / len(words[i]),
            "repeats after it, median": float(np.median(stops[some] / len(words[i]))),
            "left the pattern, %": 100 * float((lengths[some] > 0).mean()),
            "tokens after": total,
            "memorised of them, %": 100 * float(memorised[some].sum()) / total if total else None,
            "after short prompts, %": usual,
        })  # fmt: skip
    return rows


def _share_of_first(matched, n_tokens: int, config) -> float:
    """Returns the percentage that is memorised of the first tokens of each usual generation.

    Short texts have fewer windows, so rates can be compared at equal lengths only.
    """
    if not n_tokens:
        return 0.0
    starts = np.zeros((config.generation_seeds * config.n_generations, n_tokens), bool)
    whole = matched["start"] <= n_tokens - config.window
    starts[matched["generation"][whole], matched["start"][whole]] = True
    return 100 * float(language.memorised_mask(starts, config.window).mean())
