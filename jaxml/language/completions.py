"""A completions server on one's own machine, asked for its likeliest tokens."""

import http.client
import json
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np

from jaxml.language.topk_bias import TopK

_LOCAL = ("localhost", "127.0.0.1", "::1")
# What one's own machine is asked is no business of a proxy that the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_NO_ANSWER = (
    OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError, AttributeError,
)  # fmt: skip


class OracleError(RuntimeError):
    """An oracle did not answer; a search can go on from its last state."""


def completions_top_k(
    url: str,
    model: str,
    *,
    k: int = 5,
    token_id: Callable[[str], int] | None = None,
    timeout: float = 60.0,
) -> TopK:
    """Makes ``TopK`` of a server that speaks OpenAI's completions protocol.

    A call is one ``POST {url}/completions`` with the ids of a context as the prompt, ``max_tokens``
    1, ``logprobs`` k, temperature 0 and one ``logit_bias``. Servers differ in how they name tokens:
    asked with ``return_tokens_as_token_ids``, vLLM answers ``"token_id:123"``, which is understood
    as it is; for others ``token_id`` maps their text to the id.

    Args:
      url: on this machine, with the version: ``"http://localhost:8000/v1"``.
      model: as the server calls it.
      k: log-probabilities to ask for, at least 2.
      token_id: maps the text of a token to its id.
      timeout: seconds for a call.

    Returns:
      The function; it sends its rows one by one, and raises OracleError when the server fails or
      does not answer with log-probabilities.

    Raises:
      ValueError: ``k < 2``, or a server that is not on this machine: audits are for one's own.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.hostname not in _LOCAL:
        raise ValueError(f"url must be of this machine, one of {', '.join(_LOCAL)}; got {url!r}")
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}")
    address = f"{url.rstrip('/')}/completions"

    def identify(token: str) -> int:
        if token.startswith("token_id:"):
            return int(token.removeprefix("token_id:"))
        if token_id is None:
            raise OracleError(f"{address} names tokens by their text, {token!r}: give token_id")
        return token_id(token)

    def ask(context, token, bias):
        body = {
            "model": model,
            "prompt": context.tolist(),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": k,
            "logit_bias": {str(token): bias},
            "return_tokens_as_token_ids": True,
        }
        request = urllib.request.Request(
            address, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _DIRECT.open(request, timeout=timeout) as response:
                answer = json.load(response)
            top = answer["choices"][0]["logprobs"]["top_logprobs"][0].items()
        except _NO_ANSWER as error:
            raise OracleError(f"{address} gave no log-probabilities: {error}") from error
        return [(identify(name), value) for name, value in top][:k]

    def top_k(contexts, tokens, biases):
        ids = np.full((len(tokens), k), -1, np.int64)
        values = np.full((len(tokens), k), -np.inf)
        for row, query in enumerate(
            zip(contexts, tokens.tolist(), np.asarray(biases).tolist(), strict=True)
        ):
            for column, (i, value) in enumerate(ask(*query)):
                ids[row, column], values[row, column] = i, value
        return ids, values

    return top_k
