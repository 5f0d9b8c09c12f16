"""Which of many losses are of right pairs: those of the lower of two components (L2RM, 2403.05105).

Wrong pairs are learned late, so that for a while their losses lie higher (1904.11238, which proposed beta components).
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

Values = NDArray[np.float64]
Mixture = Literal["beta", "gaussian"]
_EDGE: Final = 1e-3
"""Scaled losses stay so far from 0 and 1, where a beta density may be infinite."""
_LEAST: Final = 1e-9
_ROUNDS: Final = 100
_GAIN: Final = 0.1
"""The rounds end when the log-likelihood, a sum, gains less."""


def clean_probabilities(losses: Values, mixture: Mixture = "beta") -> Values:
    """Return how likely each of (n,) losses is of the component of small ones: (n,), 1 where all are equal.

    Losses are scaled to [0, 1] by the least and the greatest. The greater a loss, the smaller its probability.

    Raises:
        ValueError: a loss is not finite.
    """
    if not np.isfinite(losses).all():
        raise ValueError(f"{(~np.isfinite(losses)).sum()} of {len(losses)} losses are not finite.")
    if not len(losses) or not (spread := np.ptp(losses)) > 0:
        return np.ones(len(losses))
    scaled = np.clip((losses - losses.min()) / spread, _EDGE, 1 - _EDGE)
    if mixture == "beta":
        posterior = _beta_mixture(scaled)
    else:
        posterior = GaussianMixture(2, random_state=0).fit(scaled[:, None]).predict_proba(scaled[:, None])
    means = (posterior * scaled[:, None]).sum(axis=0) / np.maximum(posterior.sum(axis=0), _LEAST)
    clean: Values = posterior[:, int(means.argmin())]
    # The wider component has both tails to itself, but no greater loss is cleaner than a smaller one: below the mean
    # of the small ones a probability is that of the greater ones at least, above it that of the smaller ones at most.
    order = np.argsort(scaled, kind="stable")
    below = order[scaled[order] <= means.min()]
    clean[below] = np.maximum.accumulate(clean[below][::-1])[::-1]
    clean[order] = np.minimum.accumulate(clean[order])
    return clean


def _beta_mixture(scaled: Values) -> Values:
    labels = KMeans(2, n_init=1, random_state=0).fit_predict(scaled[:, None])
    posterior: Values = np.eye(2)[labels]
    before = -np.inf
    for _ in range(_ROUNDS):
        weights = posterior.mean(axis=0)
        components = [_fitted_beta(scaled, share) for share in posterior.T]
        joint = np.stack([w * c.pdf(scaled) for w, c in zip(weights, components, strict=True)], axis=1)
        total = np.maximum(joint.sum(axis=1), np.finfo(np.float64).tiny)
        posterior, likelihood = joint / total[:, None], float(np.log(total).sum())
        if likelihood - before < _GAIN:
            break
        before = likelihood
    return posterior


def _fitted_beta(scaled: Values, share: Values) -> stats.rv_continuous:
    """Return the beta distribution whose mean and variance are those of the losses, each counted by its share."""
    weight = max(float(share.sum()), _LEAST)
    mean = float((share * scaled).sum()) / weight
    variance = max(float((share * (scaled - mean) ** 2).sum()) / weight, _LEAST)
    count = max(mean * (1 - mean) / variance - 1, 1e-3)
    return stats.beta(mean * count, (1 - mean) * count)
