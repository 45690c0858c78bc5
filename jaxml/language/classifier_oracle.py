"""Asking a text classifier of one's own what it misses: per string, or over many at once."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from jaxml.language.oracles import Answers

Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``fn(tokens [n, l]) -> (scores [n, c] in [0, 1], is flagged [n])``."""


class ClassifierOracle:
    """Scores suffixes by what a classifier says of strings that end with them.

    ``loss = sum_c mean_s score_c(string_s + x)``, which needs no threshold; a suffix succeeds when
    none of a problem's strings is flagged. With one string a problem, the search finds a suffix for
    each; with one problem of many strings it finds a universal one. Limits and priors change
    nothing.

    Attributes:
      n_problems: ``k``.
      n_parts: categories.
      queries_per_prompt: strings of a problem; a classified string is one query and one call.
      strings: ids ``[k, s, l]``.
    """

    def __init__(self, classify: Classifier, strings: Int[np.ndarray, "k s l"], *, n_parts: int):
        """Makes the oracle.

        Args:
          classify: see ``Classifier``.
          strings: the strings of each problem.
          n_parts: number of categories that ``classify`` scores.

        Raises:
          ValueError: strings of another shape.
        """
        self.classify, self.strings = classify, np.asarray(strings, np.int32)
        if self.strings.ndim != 3 or not self.strings.size:
            raise ValueError(f"strings must be [k, s, l], none empty, got {self.strings.shape}")
        self.n_problems, self.queries_per_prompt, _ = self.strings.shape
        self.n_parts = n_parts

    def __call__(self, problems, prompts, limits=None, priors=None) -> Answers:
        """Answers, see ``Oracle``."""
        strings = self.strings[problems]
        n, s, _ = strings.shape
        suffixes = np.broadcast_to(prompts[:, None], (n, s, prompts.shape[1]))
        tokens = np.concatenate([strings, suffixes], axis=2).astype(np.int32)
        scores, flagged = self.classify(tokens.reshape(n * s, -1))
        each = np.full(n, s, np.int64)
        return Answers(
            np.asarray(scores, np.float32).reshape(n, s, self.n_parts).mean(1),
            ~np.asarray(flagged, bool).reshape(n, s).any(1),
            each, each, each, each * tokens.shape[2],
        )  # fmt: skip
