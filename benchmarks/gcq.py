"""White-box GCG and GCQ on a small GPT-2, beside nanoGCG on the same weights.

    python -m benchmarks.gcq --write
    PEER_PYTHON=/path/to/python python -m benchmarks.gcq --write

The second form adds the peer: a Python with torch, transformers and nanogcg 0.3.0 runs
benchmarks/_nanogcg_peer.py. CPU seconds, one thread each.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OMP_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import json
import pathlib
import subprocess
import tempfile
import time
from functools import partial

import jax
import numpy as np

from benchmarks._results import environment, main
from jaxml import language, nn, train
from jaxml.data import text, tokenizers
from jaxml.io import save_gpt2
from jaxml.report import to_markdown

COMMAND = "PEER_PYTHON=... python -m benchmarks.gcq --write"
TARGETS = ("hello jax world", "good morning", "see you on monday", "this is a test string")
WIDTH, TOP_K, STEPS, SUFFIX_LEN = 64, 64, 40, 20
TRAIN_BYTES, VOCAB_SIZE, EPOCHS = 200_000, 512, 4
KWARGS = {"vocab_size": VOCAB_SIZE, "context": 128, "width": 64, "hidden": (256, 256), "heads": 4}
NOTES = "CPU time of each process, one thread each; other work shared the machine"


def trained():
    """Trains a GPT-2 for a minute on source text and copies; returns what the searches need."""
    body = text.load("stdlib", max_bytes=TRAIN_BYTES).text.tobytes().decode(errors="replace")
    pieces = [body[i : i + 2000] for i in range(0, len(body), 2000)]
    tokenizer = tokenizers.train_bpe(pieces, vocab_size=VOCAB_SIZE)
    ids = tokenizers.encode(tokenizer, pieces)
    n_tokens = sum(map(len, ids))
    ids += language.copy_documents(0, ids, n_tokens=n_tokens, vocab_size=VOCAB_SIZE)
    rows = language.pack_rows(0, ids, row_length=65, bos=tokenizers.bos_id(tokenizer))
    model = nn.GPT(**KWARGS)
    n_steps = EPOCHS * (len(rows) // 16)
    optimizer = train.make_optimizer("adam", learning_rate=3e-3, n_steps=n_steps)
    state = train.fit(
        jax.random.key(0), model, optimizer, rows[:, :-1], rows[:, 1:], n_epochs=EPOCHS,
        batch_size=16,
    )  # fmt: skip
    return tokenizer, model, state.variables


def own(model, variables, targets, starts, prefix, bos):
    """Runs GCG here, each target by itself; returns the rows of the table."""
    rows, allowed = [], np.arange(VOCAB_SIZE) != bos
    log_probs = language.lm_log_probs(model, variables, batch_size=WIDTH)
    for target, start in zip(targets, starts, strict=True):
        padded = language.pad_targets([target])
        oracle = language.LogprobOracle(log_probs, padded, prefix=prefix)
        swaps = language.gradient_swaps(model, variables, padded, top_k=TOP_K, prefix=prefix)
        step = partial(
            language.gcg_step, oracle=oracle, swaps=swaps, allowed=allowed, query_batch=WIDTH,
            max_queries=10**9,
        )  # fmt: skip
        keys = jax.random.split(jax.random.key(0), 1)
        times = []
        # The first round compiles.
        for n_steps in (1, STEPS):
            clock = time.process_time()
            state = language.init_search(oracle, start[None], buffer_size=1)
            state = language.run_search(
                keys, state, step, oracle=oracle, n_steps=n_steps, max_queries=10**9
            )
            times.append(time.process_time() - clock)
        clock = time.process_time()
        prompts = np.repeat(start[None], WIDTH, axis=0)
        for _ in range(10):
            oracle(np.zeros(WIDTH, int), prompts)
        seconds = time.process_time() - clock
        n = int(state.ledger.queries[0])
        rows.append({
            "candidates": n,
            "solved_at": n if state.solved[0] else 0,
            "total": times[-1],
            "rate": 10 * WIDTH / seconds,
        })  # fmt: skip
    return rows


def peer(folder: pathlib.Path) -> list[dict] | None:
    """Runs nanoGCG, if there is a Python for it."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        return None
    script = pathlib.Path(__file__).with_name("_nanogcg_peer.py")
    subprocess.run([python, str(script), str(folder)], check=True)
    rows = json.loads((folder / "result.json").read_text())
    return [row | {"rate": row["candidates"] / row["seconds"]} for row in rows]


def report() -> str:
    """Measures both and returns the section."""
    tokenizer, model, variables = trained()
    bos = tokenizers.bos_id(tokenizer)
    # The peer leaves out the token that begins a text, and cannot do without any.
    prefix = tuple(tokenizers.encode(tokenizer, ["\n"])[0].tolist())
    targets = tokenizers.encode(tokenizer, [f" {line}" for line in TARGETS])
    starts = language.init_prompts(0, "repeat_target", targets=targets, suffix_len=SUFFIX_LEN)
    # The peer takes its start as text: the longest one that comes back as these very ids.
    kept = tokenizers.round_trips(tokenizer, starts)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_gpt2(folder, KWARGS, variables)
        tokenizer.save(str(folder / "tokenizer.json"))
        problem = {
            "targets": [f" {line}" for line in TARGETS],
            "starts": [tokenizers.decode(tokenizer, start) for start in starts],
            "bos": tokenizers.BOS, "steps": STEPS, "width": WIDTH, "top_k": TOP_K, "filter": False,
        }  # fmt: skip
        (folder / "problem.json").write_text(json.dumps(problem))
        theirs = peer(folder)
    ours = own(model, variables, targets, starts, prefix, bos)
    rows = []
    for i, line in enumerate(TARGETS):
        for who, found in (("jaxml", ours), ("nanoGCG", theirs)):
            if found is not None:
                rows.append({
                    "target": line,
                    "tokens": len(targets[i]),
                    "by": who,
                    "evaluated": found[i]["candidates"],
                    "solved": bool(found[i]["solved_at"]),
                    "candidates a CPU second": found[i]["rate"],
                    "CPU s in all": found[i]["total"],
                })  # fmt: skip
    ratio = ""
    if theirs is not None:
        ratios = [a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)]
        ratio = (
            f"\nScoring candidates, jaxml is {np.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f}).\n"
        )
    head = environment(COMMAND, packages=("jax", "numpy", "flax"), notes=NOTES)
    return f"""\
## GCQ

{head}
White-box GCG on a GPT-2 of width 64 with 2 blocks and {VOCAB_SIZE} tokens, trained for {EPOCHS}
epochs on {TRAIN_BYTES} bytes of source and as many tokens that repeat themselves, exported with
`save_gpt2`. The same targets and the same start, the target repeated to {SUFFIX_LEN} tokens
({int(kept.sum())} of {len(kept)} starts come back from text as they were), {WIDTH} candidates a
step from the {TOP_K} steepest tokens, at most {STEPS} steps, no filter, stop at the first prompt
whose target is the argmax throughout. One seed each: the draws differ.

{to_markdown(rows)}{ratio}
nanoGCG 0.3.0 with torch on a CPU, in a Python of its own; its mean loss ranks as the sum does. It
counts the first prompt too. Its rate is of the candidates' losses alone, as is jaxml's; the time in
all has gradients, and for jaxml no compilation.
"""


if __name__ == "__main__":
    main("gcq", __doc__, report)
