"""GCG by nanoGCG, in a Python of its own: reads a model and targets, writes what they took.

    python _nanogcg_peer.py folder

Needs torch, transformers and nanogcg 0.3.0. The folder has a GPT-2 and ``problem.json``; candidates
are counted, and success is seen, where nanoGCG computes their losses.
"""

import json
import pathlib
import sys
import time

import nanogcg
import torch
import transformers
from nanogcg.gcg import GCG


def main(folder: pathlib.Path) -> None:
    """Runs GCG on every target of the problem."""
    torch.set_num_threads(1)
    problem = json.loads((folder / "problem.json").read_text())
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=problem["bos"],
        eos_token=problem["bos"],
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    tokenizer.clean_up_tokenization_spaces = False
    original = GCG._compute_candidates_loss_original
    seen = {}

    def counted(self, search_batch_size, input_embeds):
        # The initial buffer is scored by the same function, and counts.
        clock = time.process_time()
        loss = original(self, search_batch_size, input_embeds)
        seen["seconds"] += time.process_time() - clock
        seen["candidates"] += len(input_embeds)
        if self.stop_flag and not seen["solved_at"]:
            seen["solved_at"] = seen["candidates"]
        return loss

    GCG._compute_candidates_loss_original = counted
    found = []
    for target, start in zip(problem["targets"], problem["starts"], strict=True):
        seen = {"candidates": 0, "seconds": 0.0, "solved_at": 0}
        config = nanogcg.GCGConfig(
            num_steps=problem["steps"],
            optim_str_init=start,
            search_width=problem["width"],
            topk=problem["top_k"],
            early_stop=True,
            allow_non_ascii=True,
            filter_ids=problem["filter"],
            seed=0,
            verbosity="ERROR",
        )
        clock = time.process_time()
        nanogcg.run(model, tokenizer, "\n{optim_str}", target, config)
        found.append({**seen, "total": time.process_time() - clock})
    (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
