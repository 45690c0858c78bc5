"""The last stage of the FLIP study: users trained on the label files, and their defences."""

import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.backdoor import detection, flip_users, label_cleaning
from jaxml.core.rng import named_key
from jaxml.io import artifacts
from launch._flip_data import Audit, remove, resumable
from launch._flip_report import HARD, Outcome


class User(NamedTuple):
    """One network to train: on which labels, from which seed, less what a defence removes."""

    method: str
    amount: float  # flips, or alpha of soft labels
    labels: np.ndarray
    seed: int
    defence: str = ""
    removed: np.ndarray | None = None

    def distributions(self, n_classes: int) -> np.ndarray:
        """Labels as ``train_users`` takes them ``[n, c]``."""
        if self.labels.ndim == 2:
            return self.labels
        removed = None if self.removed is None else self.removed[None]
        return flip_users.one_hot_labels(self.labels[None], n_classes, removed=removed)[0]


def make_users(audit: Audit):
    """Trains and measures all users; what is trained already is read."""
    c, files = audit.config, audit.values["select"]
    sets = {}
    for name in sorted(files):
        method, amount = name.split("/labels_")
        sets[method, float(amount)] = files[name]

    def users(names, n_seeds):
        return [User(*name, sets[name], seed) for name in names for seed in range(n_seeds)]

    everyone = users(sets, c.user_seeds)
    networks = _train(audit, "users", everyone)
    outcomes = _outcomes(audit, "users", everyone, networks)
    if c.defended_budgets:
        which = [
            i for i, user in enumerate(everyone)
            if user.method == "clean"
            or (user.method in c.defended and user.amount in c.defended_budgets)
        ]  # fmt: skip
        defended = _defend(audit, [everyone[i] for i in which], [networks[i] for i in which])
        outcomes += _outcomes(audit, "defended", defended, _train(audit, "defended", defended))
    if c.other_model:
        names = [n for n in sets if n[0] == "clean" or (n[0] in HARD and n[1] in c.other_budgets)]
        others = users(names, c.other_seeds)
        outcomes += _outcomes(audit, "others", others, _train(audit, "others", others))
    return None, {"outcomes": [outcome._asdict() for outcome in outcomes]}


def _network(audit, part):
    """Returns name, module, learning rate and epochs of a part of the users."""
    c = audit.config
    name, width, rate, n_epochs = {
        "users": (c.model, c.width, c.user_learning_rate, c.user_epochs),
        "defended": (c.model, c.width, c.user_learning_rate, c.user_epochs),
        "early": (c.model, c.width, c.user_learning_rate, c.filter_epochs),
        "others": (c.other_model, c.other_width, c.other_learning_rate, c.other_epochs),
    }[part]
    return f"{name} {width:g}", audit.build(name, width), rate, n_epochs


def _train(audit, part, users) -> list:
    """Trains a network for each user, ``models_at_once`` of them by vmap; returns variables.

    A user's network does not depend on who is trained with it: the program is the same.
    """
    c = audit.config
    _, model, rate, n_epochs = _network(audit, part)
    optimizer = audit.sgd(rate, c.user_milestones)
    per_epoch = len(audit.x) // c.batch_size
    # Always as many as that, so that one program serves all parts that share a network.
    size = min(c.models_at_once, len(users)) if part == "others" else c.models_at_once
    networks = []
    for start in range(0, len(users), size):
        some = users[start : start + size]
        folder = None if audit.folder is None else audit.folder / "users"
        path = None if folder is None else folder / f"{part}_{start // size}.safetensors"
        filled = some + [some[-1]] * (size - len(some))
        base = named_key(audit.key, "users")
        keys = jnp.stack([jax.random.fold_in(base, user.seed) for user in filled])
        labels = np.stack([user.distributions(audit.n_classes) for user in filled])
        digest = hashlib.sha256(labels.tobytes()).hexdigest()
        if path is not None and path.exists():
            made_of = artifacts.load_metadata(path)["labels_sha256"]
        else:
            made_of = None
        if made_of == digest:
            networks += _unstack(artifacts.load_tree(path), len(some))
            continue
        which = f"{part} {start + 1}-{start + len(some)} of {len(users)}"
        audit.writer.stage(f"data seed {audit.seed}: train {which}", n_epochs * per_epoch)
        number = start // size  # users of other seeds may have the same labels
        saves = None if folder is None else folder / f"checkpoints_{part}_{number}_{digest[:16]}"
        state = flip_users.train_users(
            keys, model, optimizer, jnp.asarray(audit.x), jnp.asarray(labels),
            n_epochs=n_epochs, batch_size=c.batch_size,
            **resumable(audit, saves, keys, model, optimizer, n_epochs),
        )  # fmt: skip
        if path is not None and jax.process_index() == 0:
            metadata = {"labels_sha256": digest}
            artifacts.save_tree(path, state.variables, metadata=metadata)
        remove(saves)
        networks += _unstack(state.variables, len(some))
    return networks


def _unstack(variables, n: int) -> list:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], variables) for i in range(n)]


def _stack(networks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def _outcomes(audit, part, users, networks) -> list[Outcome]:
    name, model, *_ = _network(audit, part)
    rates = audit.rates(model, _stack(networks))
    found = []
    for i, user in enumerate(users):
        flips = clean = None
        if user.defence:
            removal = label_cleaning.removal(user.removed, user.labels != audit.y)
            flips, clean = removal.flips if user.amount else None, removal.clean
        found.append(
            Outcome(
                audit.seed, user.seed, name, user.method, user.amount, user.defence,
                *(float(rate[i]) for rate in rates), flips, clean,
            )
        )  # fmt: skip
    return found


def _defend(audit, users, networks) -> list[User]:
    """Lists each user again for every defence, without the images that it suspects."""
    c = audit.config
    early = _train(audit, "early", users)
    given = jnp.asarray(np.stack([user.labels for user in users]))
    of_early, logits, of_late = _looks(
        audit.model, _stack(early), _stack(networks), jnp.asarray(audit.x)
    )
    neighbours = jax.jit(
        lambda z, y: jax.lax.map(
            lambda pair: label_cleaning.knn_disagreement(*pair, k=c.neighbours), (z, y)
        )
    )
    scores = {
        "k-NN": np.asarray(neighbours(of_early, given)),
        "loss": np.asarray(jax.vmap(label_cleaning.label_losses)(logits, given)),
        "spectral": np.stack([
            _spectral(z, user.labels == c.target)
            for z, user in zip(np.asarray(of_late), users, strict=True)
        ]),
    }  # fmt: skip
    found = []
    for defence, of_users in scores.items():
        for user, score in zip(users, of_users, strict=True):
            # On clean labels the defender expects as many flips as there are at most.
            flips = user.amount or max(c.defended_budgets)
            removed = label_cleaning.suspects(score, round(c.removed_per_flip * flips))
            found.append(user._replace(defence=defence, removed=removed))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _looks(model, early, late, x):
    """Features and logits of early networks, and features of late ones, ``[s, n, ...]``."""

    def look(networks):
        return jax.lax.map(lambda v: detection.features(model, v, x), networks)

    return look(early), jax.lax.map(lambda v: model.apply(v, x), early), look(late)


def _spectral(features, labelled) -> np.ndarray:
    """Scores the images with the target's label, which this defender is told; others get less."""
    scores = np.full(len(features), -1.0)
    scores[labelled] = detection.spectral_scores(jnp.asarray(features[labelled]))
    return scores
