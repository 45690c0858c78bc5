"""Log-probabilities through a top-k interface with a bias, and through a server that has one."""

import http.server
import json
import threading

import numpy as np
import pytest

from jaxml import language as lm
from jaxml.language.topk_bias import MAX_BIAS
from tests.language.prompt_cases import log_softmax


def distributions(n, v=1024, scale=3.0, seed=0):
    """Returns the log-probabilities ``[n, v]`` that follow context ``[[i]]``."""
    rng = np.random.default_rng(seed)
    return log_softmax(rng.normal(size=(n, v)) * scale).astype(np.float32)


def test_bias_and_recovery_are_inverse():
    log_p = np.array([-1e-3, -0.7, -5.0, -40.0])
    bias = lm.bias_for(log_p)
    p = np.exp(log_p)
    np.testing.assert_allclose(bias[1:3], np.log1p(-p[1:3]) - log_p[1:3], rtol=1e-12)
    biased = np.log(np.exp(bias) * p / (np.exp(bias) * p + 1 - p))
    np.testing.assert_allclose(biased, np.log(0.5), atol=1e-9)
    np.testing.assert_allclose(lm.log_prob_from_bias(biased, bias), log_p, rtol=1e-9)


def test_recovered_log_probabilities_match_the_softmax():
    table = distributions(1000)
    rng = np.random.default_rng(1)
    contexts, tokens = np.arange(1000)[:, None], rng.integers(0, 1024, 1000)
    tokens[:50] = table[:50].argmax(1)
    true = table[np.arange(1000), tokens]
    score = lm.bias_scores(lm.simulate_top_k(lambda c: table[c[:, 0]], k=5))
    for guesses, at_most in ((true + rng.uniform(-1, 1, 1000), 1.05), (np.full(1000, np.nan), 8)):
        found = score(contexts, tokens, np.minimum(guesses, -1e-4))
        np.testing.assert_allclose(found.log_prob, true, atol=1e-4)
        np.testing.assert_array_equal(found.is_argmax, table.argmax(1) == tokens)
        assert found.calls.mean() <= at_most
    # A guess that is far off costs calls, and no accuracy.
    for off in (-30, 30):
        found = score(contexts, tokens, np.minimum(true + off, -1e-9))
        np.testing.assert_allclose(found.log_prob, true, atol=1e-4)


def test_bisection_finds_what_is_all_but_impossible():
    log_p = np.array([np.log(1e-9), -60.0, np.log1p(-1e-9), -1e4])
    table = np.full((4, 8), -np.inf, np.float32)
    table[:, 0] = log_p
    table[:, 1:6] = np.log(-np.expm1(np.minimum(log_p, -1e-9)))[:, None] - np.log(5)
    score = lm.bias_scores(lm.simulate_top_k(lambda c: table[c[:, 0]], k=5))
    found = score(np.arange(4)[:, None], np.zeros(4, int), np.full(4, np.nan))
    np.testing.assert_allclose(found.log_prob[:3], log_p[:3], atol=1e-4)
    assert np.isnan(found.log_prob[3])  # not seen with the largest bias there is
    assert found.is_argmax.tolist() == [False, False, True, False]
    assert found.calls.max() < 20
    with pytest.raises(ValueError, match="k must be at least 2, got 1"):
        lm.simulate_top_k(lambda c: c, k=1)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a completions server does, from a table by the context's last token."""

    def do_POST(self):
        """Serves one call."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, body))
        if len(self.server.bodies) == self.server.fails_at:
            self.send_error(500)
            return
        if self.server.garbage:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.garbage)
            return
        logits = self.server.table[body["prompt"][-1]].astype(float)
        for token, bias in body["logit_bias"].items():
            logits[int(token)] += bias
        row = log_softmax(logits)
        best = np.argsort(-row)[: body["logprobs"]]
        name = self.server.name
        top = {name.format(i): float(row[i]) for i in best}
        text = json.dumps({"choices": [{"text": "", "logprobs": {"top_logprobs": [top]}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """Keeps quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.table, server.bodies = distributions(16, v=32), []
        server.name, server.fails_at, server.garbage = "token_id:{}", 0, b""
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_completions_server_is_an_oracle(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    targets = lm.pad_targets([[4, 5, 6], [7, 8]])
    top_k = lm.completions_top_k(url, "mine", k=3)
    oracle = lm.TokenwiseOracle(lm.bias_scores(top_k), targets, prefix=(1,))
    answers = oracle(np.array([0, 1]), np.int32([[2, 3], [9, 10]]))
    table = server.table
    wanted = [table[3, 4] + table[4, 5] + table[5, 6], table[10, 7] + table[7, 8]]
    np.testing.assert_allclose(-answers.parts.sum(1), wanted, atol=1e-4)
    assert answers.calls.sum() == len(server.bodies)
    sent = sum(len(body["prompt"]) for _, body in server.bodies)
    assert answers.prompt_tokens.sum() == sent
    path, body = server.bodies[0]
    assert path == "/v1/completions" and body["model"] == "mine" and body["prompt"][0] == 1
    assert all(abs(b) <= MAX_BIAS for _, body in server.bodies for b in body["logit_bias"].values())
    # A server that answers with text needs to be told what that means.
    server.name = "<{}>"
    with pytest.raises(lm.OracleError, match=r"names tokens by their text, '<\d+>': give token_id"):
        oracle(np.array([1]), np.int32([[9, 10]]))
    named = lm.completions_top_k(url, "mine", k=3, token_id=lambda text: int(text[1:-1]))
    again = lm.TokenwiseOracle(lm.bias_scores(named), targets, prefix=(1,))
    np.testing.assert_allclose(
        again(np.array([1]), np.int32([[9, 10]])).parts, answers.parts[1:], atol=1e-5
    )
    server.garbage = b'{"choices": [{"logprobs": {"top_logprobs": [[1, 2]]}}]}'
    with pytest.raises(lm.OracleError, match="gave no log-probabilities: 'list' object has no"):
        again(np.array([1]), np.int32([[9, 10]]))
    server.fails_at = len(server.bodies) + 1
    with pytest.raises(lm.OracleError, match="gave no log-probabilities: HTTP Error 500"):
        again(np.array([1]), np.int32([[9, 10]]))


def test_only_a_server_of_this_machine_is_asked():
    for url in ("https://api.example.com/v1", "localhost:8000", "ftp://localhost"):
        with pytest.raises(ValueError, match="url must be of this machine"):
            lm.completions_top_k(url, "theirs")
    with pytest.raises(ValueError, match="k must be at least 2"):
        lm.completions_top_k("http://localhost:8000/v1", "mine", k=1)
