r"""Is the split between anatomy and contrast real?

    gap        mean |q1 - q2|² / (2 var q)      0 the same, 1 unrelated, above 1 opposed (2 is q2 = -q1)
    agreement  share of places with c1 = c2     beside its chance sum_k p1(k) p2(k), from the two histograms
    probe      balanced accuracy of a fresh linear classifier, beside 1 / number of classes

q1 and q2 are the quantised anatomy vectors of two contrasts of one brain at the same places, c1 and c2 their codes. No
single measure suffices: collapsed codes agree everywhere, and a decoder that has learned each contrast's own codes
translates well although the codes reveal their contrast.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from neurotome.types import Vectors

TokenCodes = Int[Tensor, " n"]
Classes = Int[Tensor, " n"]


@dataclass(frozen=True)
class Probe:
    """The result of a newly trained linear classifier.

    Args:
        balanced_accuracy: Mean recall over the classes, on subjects it was not fitted on.
        chance: One over the number of classes that are tested: the value of a constant answer.
        n_train: Samples it was fitted on.
        n_test: Samples it was tested on.
    """

    balanced_accuracy: float
    chance: float
    n_train: int
    n_test: int

    def to_json(self) -> dict[str, float | int]:
        """Return the fields by name."""
        return asdict(self)


def variance(q: Vectors) -> float:
    """Return the mean squared distance of the vectors from their mean."""
    q = q.double()
    return float((q - q.mean(0)).square().sum(1).mean())


def code_gap(q1: Vectors, q2: Float[Tensor, "m d"], spread: float | None = None) -> float:
    """Return the mean squared distance of two contrasts' vectors over twice their variance.

    Args:
        q1: Vectors of the first contrast, ``(n, d)``.
        q2: Vectors of the second at the same places.
        spread: The variance to divide by; that of both sets together if None. NaN where it is 0.

    Raises:
        ValueError: The shapes differ.
    """
    if q1.shape != q2.shape:
        raise ValueError(f"a gap needs vectors at the same places; got {tuple(q1.shape)} and {tuple(q2.shape)}")
    spread = variance(torch.cat([q1, q2])) if spread is None else spread
    distance = float((q1.double() - q2.double()).square().sum(1).mean())
    return distance / (2 * spread) if spread > 0 else float("nan")


def agreement(c1: TokenCodes, c2: Int[Tensor, " m"], num_codes: int) -> tuple[float, float]:
    """Return the share of places with equal codes, and the share that independent codes would reach by chance.

    Raises:
        ValueError: The lengths differ.
    """
    if c1.shape != c2.shape:
        raise ValueError(f"agreement needs codes at the same places; got {len(c1)} and {len(c2)}")
    p1, p2 = (torch.bincount(c, minlength=num_codes).double() / len(c) for c in (c1, c2))
    return float((c1 == c2).double().mean()), float(p1 @ p2)


def linear_probe(
    train_x: Float[Tensor, "n d"],
    train_y: Classes,
    test_x: Float[Tensor, "m d"],
    test_y: Int[Tensor, " m"],
    seed: int = 0,
) -> Probe:
    """Fit a logistic regression on standardised training features; test it on other subjects.

    Args:
        train_x: Features of the training subjects.
        train_y: Their classes.
        test_x: Features of the test subjects.
        test_y: Their classes.
        seed: Of the solver.

    Raises:
        ValueError: The training samples hold fewer than two classes.
    """
    if len(torch.unique(train_y)) < 2:
        raise ValueError("a probe needs at least two classes among the training samples")
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000, random_state=seed)
    )
    probe.fit(_numpy(train_x), _numpy(train_y))
    right = torch.from_numpy(probe.predict(_numpy(test_x))) == test_y.cpu()
    return Probe(_mean_recall(right, test_y.cpu()), _chance(test_y), len(train_y), len(test_y))


def code_probe(
    train_codes: TokenCodes, train_y: Classes, test_codes: Int[Tensor, " m"], test_y: Int[Tensor, " m"], num_codes: int
) -> Probe:
    """Return the accuracy of a linear classifier on one-hot codes, in closed form.

    On one-hot features it can only predict, for each code, the class where that code is most frequent. A code never
    seen in training, or equally frequent in several classes, counts as the chance of a random guess.
    """
    num_classes = int(train_y.max()) + 1
    table = torch.bincount(train_y * num_codes + train_codes, minlength=num_classes * num_codes).double()
    table = table.view(num_classes, num_codes)
    table = table / table.sum(1, keepdim=True).clamp_min(1)
    best = (table == table.amax(0)).double()
    credit = best / best.sum(0)  # (class, code): share of a guess that falls on the class
    return Probe(_mean_recall(credit[test_y, test_codes], test_y), _chance(test_y), len(train_y), len(test_y))


def factor_probe(
    train_x: Float[Tensor, "n d"],
    train_y: Float[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Float[Tensor, " m"],
) -> float:
    """Return R² of a ridge regression of a known factor on standardised features: 1 is exact, 0 as good as the mean."""
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 13)))
    probe.fit(_numpy(train_x), _numpy(train_y))
    return float(r2_score(_numpy(test_y), probe.predict(_numpy(test_x))))


def _chance(classes: Tensor) -> float:
    """Return the balanced accuracy of one answer for all: recalls are averaged over the classes that occur."""
    return 1 / len(torch.unique(classes))


def _mean_recall(right: Tensor, classes: Tensor) -> float:
    """Return the mean over the classes that occur of the mean of ``right`` within each."""
    recall = [float(right[classes == k].double().mean()) for k in torch.unique(classes)]
    return sum(recall) / len(recall)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
