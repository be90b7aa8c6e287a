"""Clusters beside known classes."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxgmm.selection import class_error


def test_the_matching_is_the_best_there_is_also_of_unequal_numbers():
    rng = np.random.default_rng(0)
    for n_clusters, n_classes in ((5, 3), (2, 4)):
        labels = np.arange(60) % n_clusters
        truth = np.array(["fir", "oak", "ash", "elm"])[rng.integers(n_classes, size=60)]
        found = class_error(labels + 7, truth)
        assert found.clusters.tolist() == list(range(7, 7 + n_clusters))
        assert found.classes.tolist() == sorted(set(truth))
        for i in range(n_clusters):
            for j, name in enumerate(found.classes):
                assert found.table[i, j] == ((labels == i) & (truth == name)).sum()
        rows, columns = linear_sum_assignment(-found.table)
        assert round(found.error_rate * 60) == 60 - found.table[rows, columns].sum()
        assert (found.matched >= 0).sum() == min(n_clusters, n_classes)
        right = [m >= 0 and found.classes[m] == t for m, t in zip(found.matched[labels], truth, strict=True)]
        np.testing.assert_array_equal(found.misclassified, np.flatnonzero(~np.array(right)))


def test_it_prints_a_table_and_refuses_what_does_not_fit():
    found = class_error([1, 0, 2], ["a", "b", "b"])
    assert "1 of 3 misclassified, 33.3 %" in str(found)
    assert "none" in str(found)
    assert "<table" in found._repr_html_()
    with pytest.raises(ValueError, match="same shape"):
        class_error([1, 2], [1, 2, 3])
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda labels: class_error(labels, np.zeros(3)).error_rate)(np.zeros(3))
