"""Auditing language models: what they have memorised, and what they can be driven to emit.

For models and corpora that you own.
"""

from jaxml.language.buffer import EXPANSIONS, Buffer
from jaxml.language.classifier_oracle import ClassifierOracle
from jaxml.language.completions import OracleError, completions_top_k
from jaxml.language.documents import (
    SEPARATOR,
    Documents,
    from_offsets,
    join_documents,
    locate,
    split_documents,
)
from jaxml.language.estimators import (
    Chao,
    Interval,
    bootstrap_unique,
    chao1,
    frequencies,
    good_toulmin,
    good_turing_missing_mass,
    mark_recapture,
    sequential_good_turing,
)
from jaxml.language.exposure import exposure, exposure_skew_normal
from jaxml.language.extraction import (
    CorpusWindows,
    Hits,
    Span,
    corpus_windows,
    discoverable,
    divergence_prompt,
    find_hits,
    find_spans,
    match_index,
    memorised_mask,
    memorised_tokens,
    random_prompts,
    split_after_repeats,
    unique_curve,
)
from jaxml.language.gcg import gcg_step, gradient_swaps, token_gradient
from jaxml.language.gcq import gcq_step
from jaxml.language.generate import Model, document_nll, generate, token_nll
from jaxml.language.lm_scores import lm_log_probs, lm_next_token, target_log_probs
from jaxml.language.membership import (
    MembershipScores,
    auc,
    drop_near_duplicates,
    membership_scores,
    precision_at,
)
from jaxml.language.neighbours import open_swaps, sample_neighbours
from jaxml.language.oracles import PAD, Answers, Ledger, LogprobOracle, Oracle, pad_targets
from jaxml.language.packing import copy_documents, pack_rows
from jaxml.language.position_first import position_first_step
from jaxml.language.prompts import INITS, init_prompts
from jaxml.language.search import SearchInfo, SearchState, init_search, run_search
from jaxml.language.stream import StreamMatch, document_blocks, file_blocks, match_stream
from jaxml.language.suffix_array import (
    SuffixIndex,
    build_suffix_array,
    build_suffix_index,
    count_occurrences,
    longest_match,
)
from jaxml.language.tokenwise import TokenScores, TokenwiseOracle, full_scores
from jaxml.language.topk_bias import bias_for, bias_scores, log_prob_from_bias, simulate_top_k
from jaxml.language.window_index import (
    Found,
    WindowIndex,
    build_window_index,
    contains,
    find_windows,
)

__all__ = [
    "EXPANSIONS",
    "INITS",
    "PAD",
    "SEPARATOR",
    "Answers",
    "Buffer",
    "Chao",
    "ClassifierOracle",
    "CorpusWindows",
    "Documents",
    "Found",
    "Hits",
    "Interval",
    "Ledger",
    "LogprobOracle",
    "MembershipScores",
    "Model",
    "Oracle",
    "OracleError",
    "SearchInfo",
    "SearchState",
    "Span",
    "StreamMatch",
    "SuffixIndex",
    "TokenScores",
    "TokenwiseOracle",
    "WindowIndex",
    "auc",
    "bias_for",
    "bias_scores",
    "bootstrap_unique",
    "build_suffix_array",
    "build_suffix_index",
    "build_window_index",
    "chao1",
    "completions_top_k",
    "contains",
    "copy_documents",
    "corpus_windows",
    "count_occurrences",
    "discoverable",
    "divergence_prompt",
    "document_blocks",
    "document_nll",
    "drop_near_duplicates",
    "exposure",
    "exposure_skew_normal",
    "file_blocks",
    "find_hits",
    "find_spans",
    "find_windows",
    "frequencies",
    "from_offsets",
    "full_scores",
    "gcg_step",
    "gcq_step",
    "generate",
    "good_toulmin",
    "good_turing_missing_mass",
    "gradient_swaps",
    "init_prompts",
    "init_search",
    "join_documents",
    "lm_log_probs",
    "lm_next_token",
    "locate",
    "log_prob_from_bias",
    "longest_match",
    "mark_recapture",
    "match_index",
    "match_stream",
    "membership_scores",
    "memorised_mask",
    "memorised_tokens",
    "open_swaps",
    "pack_rows",
    "pad_targets",
    "position_first_step",
    "precision_at",
    "random_prompts",
    "run_search",
    "sample_neighbours",
    "sequential_good_turing",
    "simulate_top_k",
    "split_after_repeats",
    "split_documents",
    "target_log_probs",
    "token_gradient",
    "token_nll",
    "unique_curve",
]
