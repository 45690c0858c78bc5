"""Auditing language models: exact matching against a training corpus, and what it extrapolates to.

For models and corpora that you own.
"""

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
from jaxml.language.generate import Model, generate, token_nll
from jaxml.language.packing import copy_documents, pack_rows
from jaxml.language.stream import StreamMatch, document_blocks, file_blocks, match_stream
from jaxml.language.suffix_array import (
    SuffixIndex,
    build_suffix_array,
    build_suffix_index,
    count_occurrences,
    longest_match,
)
from jaxml.language.window_index import (
    Found,
    WindowIndex,
    build_window_index,
    contains,
    find_windows,
)

__all__ = [
    "SEPARATOR",
    "Chao",
    "Documents",
    "Found",
    "Interval",
    "Model",
    "StreamMatch",
    "SuffixIndex",
    "WindowIndex",
    "bootstrap_unique",
    "build_suffix_array",
    "build_suffix_index",
    "build_window_index",
    "chao1",
    "contains",
    "copy_documents",
    "count_occurrences",
    "document_blocks",
    "file_blocks",
    "find_windows",
    "frequencies",
    "from_offsets",
    "generate",
    "good_toulmin",
    "good_turing_missing_mass",
    "join_documents",
    "locate",
    "longest_match",
    "mark_recapture",
    "match_stream",
    "pack_rows",
    "sequential_good_turing",
    "split_documents",
    "token_nll",
]
