import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neurotome.metrics.disentanglement import agreement, code_gap, code_probe, factor_probe, linear_probe, variance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gap_of_same_unrelated_and_opposed_codes():
    q = normal(20_000, 6)
    assert code_gap(q, q) == 0
    assert code_gap(q, normal(20_000, 6, seed=1)) == pytest.approx(1, abs=0.02)
    assert code_gap(q, -q) == pytest.approx(2, abs=0.01)
    assert code_gap(q, q + 0.1) == pytest.approx(code_gap(10 * q, 10 * q + 1), rel=1e-3)  # scale does not matter
    assert code_gap(q, q + 0.1, spread=2 * variance(q)) == pytest.approx(code_gap(q, q + 0.1) / 2, rel=0.01)
    assert math.isnan(code_gap(torch.ones(5, 2), torch.ones(5, 2)))
    with pytest.raises(ValueError, match="same places"):
        code_gap(q, q[1:])


def test_agreement_and_its_chance_by_brute_force():
    rng = np.random.default_rng(0)
    c1, c2 = rng.integers(0, 5, 60), rng.choice(5, 60, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    share, chance = agreement(torch.tensor(c1), torch.tensor(c2), 7)
    assert share == pytest.approx(np.mean(c1 == c2))
    assert chance == pytest.approx(np.mean([a == b for a in c1 for b in c2]))
    assert agreement(torch.tensor(c1), torch.tensor(c1), 7)[0] == 1
    assert agreement(torch.zeros(9, dtype=torch.long), torch.zeros(9, dtype=torch.long), 4) == (1.0, 1.0)
    with pytest.raises(ValueError, match="same places"):
        agreement(torch.tensor(c1), torch.tensor(c2[1:]), 7)


def test_linear_probe_of_noise_and_of_separable_classes():
    y, y_test = torch.arange(2000) % 2, torch.arange(600) % 2
    x, x_test = normal(2000, 4), normal(600, 4, seed=1)
    assert linear_probe(x, y, x_test, y_test).balanced_accuracy == pytest.approx(0.5, abs=0.06)
    shift = torch.tensor([0.0, 0.0, 9.0, 0.0])
    seen = linear_probe(x + y[:, None] * shift, y, x_test + y_test[:, None] * shift, y_test)
    assert seen.balanced_accuracy == 1
    assert (seen.chance, seen.n_train, seen.n_test) == (0.5, 2000, 600)


def test_linear_probe_standardises_and_balances():
    """A tiny informative feature beside a huge useless one, nine times as many of one class."""
    y, y_test = (torch.arange(1000) % 10 == 0).long(), (torch.arange(400) % 10 == 0).long()
    x, x_test = normal(1000, 2) * torch.tensor([1e-4, 1e4]), normal(400, 2, seed=1) * torch.tensor([1e-4, 1e4])
    x[:, 0] += 1.5e-4 * y
    x_test[:, 0] += 1.5e-4 * y_test
    # halfway between the classes both are right at Phi(0.75) = 0.77; with the priors in, at 0.55
    assert linear_probe(x, y, x_test, y_test).balanced_accuracy == pytest.approx(0.77, abs=0.06)
    useless = linear_probe(x[:, 1:], y, x_test[:, 1:], y_test)
    assert useless.balanced_accuracy == pytest.approx(
        0.5, abs=0.1
    )  # a majority vote would be right at 0.9 of the places


def test_probe_needs_two_classes():
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(normal(4, 2), torch.zeros(4, dtype=torch.long), normal(2, 2), torch.zeros(2, dtype=torch.long))


def test_code_probe_reads_what_a_logistic_regression_reads():
    rng = np.random.default_rng(0)
    p = [[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.3, 0.4]]
    draw = lambda n: (np.concatenate([rng.choice(5, n, p=q) for q in p]), np.repeat([0, 1], n))  # noqa: E731
    (c, y), (c_test, y_test) = draw(4000), draw(2000)
    ours = code_probe(*(torch.tensor(v) for v in (c, y, c_test, y_test)), num_codes=5)
    peer = LogisticRegression(C=1e4).fit(np.eye(5)[c], y).predict(np.eye(5)[c_test])
    expected = np.mean([(peer == y_test)[y_test == k].mean() for k in (0, 1)])
    # the code that is equally frequent in both is a coin toss for either
    assert ours.balanced_accuracy == pytest.approx(expected, abs=0.02)
    best = 0.5 * (0.5 + 0.2 + 0.1) + 0.5 * (0.3 + 0.4)
    assert ours.balanced_accuracy == pytest.approx(best, abs=0.02)


def test_code_probe_of_unseen_and_of_uninformative_codes():
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    naming = code_probe(y, y, y, y, 9)
    assert (naming.balanced_accuracy, naming.chance) == (1.0, pytest.approx(1 / 3))
    assert code_probe(y, y, y + 4, y, 9).balanced_accuracy == pytest.approx(1 / 3)
    assert code_probe(torch.zeros_like(y), y, torch.zeros_like(y), y, 9).balanced_accuracy == pytest.approx(1 / 3)


def test_factor_probe():
    x, x_test = normal(200, 3), normal(50, 3, seed=1)
    w = torch.tensor([1.0, -2.0, 0.5])
    assert factor_probe(x, x @ w + 40, x_test, x_test @ w + 40) == pytest.approx(1, abs=1e-3)
    assert factor_probe(x, normal(200, seed=2), x_test, normal(50, seed=3)) < 0.2


def test_chance_is_that_of_a_constant_answer():
    """Three sites in training, two in the test split: constant features reach the stated chance."""
    constant = torch.zeros(30, 4)
    train, test = torch.arange(30) % 3, torch.arange(30) % 2
    probe = linear_probe(constant, train, constant, test)
    assert probe.balanced_accuracy == probe.chance == 0.5
    codes = torch.arange(30) // 10  # each code is one class's in training, none of which says anything of the test
    assert code_probe(codes, train, codes, test, 3).chance == 0.5
