"""Drop duplicates from a pool of text, train a small GPT on it, count what can be extracted."""

import hashlib
import itertools

import jax
import numpy as np

from jaxml import curation, language, report, train
from jaxml.core.rng import named_key
from jaxml.data import text, tokenizers
from launch import _language_model

ALL, DEDUPLICATED = "trained on all", "trained without duplicates"
NOTE = (
    "filter_train_extract: both networks take as many steps on as many tokens, so the one without "
    "duplicates goes through its smaller pool more often. An excerpt is extracted if its first "
    "tokens, decoded greedily, go on as it does; 'windows in the pool' is the share of all windows "
    "of unprompted samples that stand somewhere in the pool. The text is that of the running "
    "Python's standard library, so other versions give other numbers."
)


def prepare(c, mesh):
    """Returns ``measure(key, seed) -> rows``."""
    source = text.load("stdlib", max_bytes=40 * (c.body_bytes + c.held_out_bytes) + 2_000_000)
    optimizer = train.make_optimizer(
        "adamw", learning_rate=c.learning_rate, n_steps=c.steps, schedule="cosine",
        warmup_steps=c.steps // 20, weight_decay=c.weight_decay,
    )  # fmt: skip
    model = _language_model.make_model(c, c.vocab_size)

    def measure(key, seed):
        draw = int(jax.random.randint(named_key(key, "pool"), (), 0, 2**31 - 1))
        pool, excerpts, held_out = make_pool(c, source, draw)
        documents = text.split(pool)
        tokenizer = tokenizers.train_bpe(map(_decode, documents), vocab_size=c.vocab_size)
        bos = tokenizers.bos_id(tokenizer)
        ids, planted, unseen = (
            tokenizers.encode(tokenizer, list(map(_decode, group)))
            for group in (documents, excerpts.documents, held_out)
        )
        index = language.build_window_index(language.join_documents(ids), c.window)
        unseen = language.pack_rows(0, unseen, row_length=c.context + 1, bos=bos)
        keep = curation.dedup_mask([hashlib.sha256(d).hexdigest() for d in documents])
        found = []
        for name, mask in ((ALL, np.ones(len(ids), bool)), (DEDUPLICATED, keep)):
            kept = list(itertools.compress(ids, mask))
            rows, passes = _rows(c, kept, bos)
            variables = train.fit(
                named_key(key, "fit"), model, optimizer, rows[:, :-1], rows[:, 1:],
                n_epochs=1, batch_size=c.batch_size, mesh=mesh,
            ).variables  # fmt: skip
            extracted = _extracted(c, model, variables, planted, bos)
            copied = _copied(c, named_key(key, "sample"), model, variables, index, bos)
            of_level = {
                f"extracted of {level}": float(extracted[excerpts.copies == level].mean())
                for level in c.levels
            }
            found.append(
                {
                    "seed": seed,
                    "network": name,
                    "documents": len(kept),
                    "passes": float(passes),
                    "loss held out": float(language.token_nll(model, variables, unseen).mean()),
                    "extracted": float(extracted.mean()),
                    "windows in the pool": copied,
                    **of_level,
                }
            )
        return found

    return measure


def make_pool(c, source, seed):
    """Returns a pool with planted excerpts, the excerpts, and documents outside the pool."""
    pieces = text.pieces(seed, source, n_bytes=c.piece_bytes)
    queue = iter(zip(pieces.names, text.split(pieces), strict=True))
    used = set()

    def take(n_bytes):
        taken = []
        while sum(map(len, taken)) < n_bytes:
            name, piece = next(queue, (None, None))
            if name is None:
                raise ValueError("the corpus is too small for body_bytes and held_out_bytes")
            used.add(name)
            taken.append(piece)
        return taken

    body, held_out = take(c.body_bytes), take(c.held_out_bytes)
    rest = {n: d for n, d in zip(source.names, text.split(source), strict=True) if n not in used}
    excerpts = text.excerpts(
        seed, text.join(list(rest.values()), list(rest)), n_per_level=c.excerpts_per_level,
        levels=tuple(c.levels), n_bytes=c.excerpt_bytes,
    )  # fmt: skip
    return text.plant(seed, text.join(body), excerpts), excerpts, held_out


def _decode(document: bytes) -> str:
    return document.decode(errors="replace")


def _rows(c, documents, bos):
    """Packs passes, each cut otherwise, until there is a row for every example of every step."""
    wanted, rows = c.steps * c.batch_size, []
    while sum(map(len, rows)) < wanted:
        rows.append(language.pack_rows(len(rows), documents, row_length=c.context + 1, bos=bos))
    return np.concatenate(rows)[:wanted], wanted / len(rows[0])


def _extracted(c, model, variables, planted, bos) -> np.ndarray:
    """Tells which excerpts the model goes on with."""
    end = c.prompt_tokens + c.window
    if (shortest := min(map(len, planted))) < end:
        raise ValueError(f"excerpt_bytes must give {end} tokens, prompt and window; got {shortest}")
    excerpts = np.stack([ids[:end] for ids in planted])
    begin = np.full((len(planted), 1), bos)
    prompts = np.concatenate([begin, excerpts[:, : c.prompt_tokens]], axis=1)
    return language.discoverable(model, variables, prompts, excerpts[:, c.prompt_tokens :])


def _copied(c, key, model, variables, index, bos) -> float:
    """Returns the share of the windows of samples that stand in the pool."""
    keys = jax.random.split(key, c.n_samples)
    begin = np.full((c.n_samples, 1), bos)
    said = language.generate(keys, model, variables, begin, n_tokens=c.context - 1)
    windows = np.lib.stride_tricks.sliding_window_view(said, c.window, axis=1)
    return float(language.contains(index, windows.reshape(-1, c.window)).mean())


def claim(c, rows) -> report.Claim:
    """Sets what is extracted with duplicates beside what is extracted without them."""
    extracted = {
        name: [row["extracted"] for row in rows if row["network"] == name]
        for name in (ALL, DEDUPLICATED)
    }
    return report.difference_claim(
        "Duplicates drive extraction: with them a model gives away more of the planted excerpts "
        "(GPT on source files)",
        extracted[ALL], extracted[DEDUPLICATED], against_name="the pool without duplicates",
        bound=c.bounds.all_over_deduplicated, paper="a composition", paper_value="none",
        seeds=f"{c.n_seeds} seeds",
    )  # fmt: skip


def plot(c, rows):
    """Draws the share of excerpts that are extracted against their copies in the pool."""
    series = {}
    for name in (ALL, DEDUPLICATED):
        shares = np.array(
            [
                [row[f"extracted of {level}"] for level in c.levels]
                for row in rows
                if row["network"] == name
            ]
        )
        series[name] = (c.levels, shares.mean(0), shares.std(0))
    figure = report.lines(
        series, xlabel="copies in the pool, before duplicates are dropped",
        ylabel="share of excerpts extracted", xlog=True,
        title=f"Prompted by {c.prompt_tokens} tokens (band: sd over seeds)", size=(6.0, 3.8),
    )  # fmt: skip
    figure.axes[0].set_ylim(-0.03, 1.03)  # a band of shares may leave [0, 1]
    return figure
