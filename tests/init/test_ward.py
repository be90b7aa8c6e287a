"""Ward's hierarchy: SciPy's partitions, weights, and samples of many rows."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage

import jaxgmm
from jaxgmm.init._clusters import ward
from tests.conftest import overlapping
from tests.quick import quick_jit

N, D, K = 60, 3, 6
labels_of = quick_jit(jaxgmm.init.hierarchical_labels, static_argnames=("max_components", "max_rows"))
X = overlapping(N, D, 3, seed=4)[0]


def same_partition(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return ((a[:, None] == a[None, :]) == (b[:, None] == b[None, :])).all()


def scaled(x):
    """Standardised, and its principal axes divided by the square roots of their spread."""
    z = (x - x.mean(0)) / x.std(0)
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    return z @ vectors / values**0.25


def test_partitions_are_scipys_ward(double):
    table = np.asarray(quick_jit(lambda x, w: ward(x, w, N))(X, np.ones(N)))
    tree = linkage(X, "ward")
    for k in range(1, N + 1):
        assert sorted(set(table[k - 1])) == list(range(k))
        assert same_partition(table[k - 1], cut_tree(tree, n_clusters=k)[:, 0])


def test_labels_are_those_of_scaled_data_whatever_the_units():
    tree = linkage(scaled(X), "ward")
    for data in (X, X * np.array([512.0, 1.0, 2.0**-9]) + np.array([1.0, 50.0, 0.0])):
        table = labels_of(data.astype("f4"), K)
        assert table.shape == (K, N)
        assert table.dtype == np.int32
        for k in range(1, K + 1):
            assert same_partition(table[k - 1], fcluster(tree, k, "maxclust"))


def test_integer_weights_are_repetition_and_rows_of_weight_zero_have_no_say(double):
    counts = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N)).astype(float)
    repeated = np.repeat(np.arange(N), counts.astype(int))
    weighted = np.asarray(labels_of(X, K, counts))
    table = np.asarray(labels_of(X[repeated], K, np.ones(N)))
    for k in range(K):
        assert same_partition(weighted[k][repeated], table[k])
    moved = X.copy()
    moved[counts == 0] = 1e6
    np.testing.assert_array_equal(
        np.asarray(labels_of(moved, K, counts))[:, counts > 0], weighted[:, counts > 0]
    )


def test_of_many_rows_a_sample_is_agglomerated_and_the_others_join_it():
    corners = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0]])
    labels = np.arange(900) % 3
    x = corners[labels] + np.random.default_rng(0).normal(size=(900, 2))
    w = np.where(np.arange(900) % 7 == 0, 0.0, 1.0)
    x[w == 0] += 1e4
    table = labels_of(x.astype("f4"), 4, w.astype("f4"), max_rows=100)
    assert same_partition(np.asarray(table[2])[w > 0], labels[w > 0])
    assert set(np.asarray(table[3]).tolist()) == {0, 1, 2, 3}
    assert (np.asarray(table[0]) == 0).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_few_and_equal_points(rows):
    table = np.asarray(labels_of(np.full((rows, 2), 3.0, np.float32), rows))
    assert [sorted(set(t)) for t in table] == [list(range(k + 1)) for k in range(rows)]
