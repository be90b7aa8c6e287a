"""Outliers against the robustness of t components: table 1 of Peel & McLachlan (2000).

One value of a hundred crabs, the rear width of the 25th, is moved, and the crabs are divided into two
components of common scatter matrices, with common degrees of freedom: how many have the wrong sex?
"""

import functools

import numpy as np

import jaxgmm
from tests.conftest import DATA
from tests.quick import quick_jit

SEX = np.loadtxt(DATA / "crabs_blue.csv", dtype=str, delimiter=",", skiprows=2, usecols=0) == "M"
CRABS = np.loadtxt(DATA / "crabs_blue.csv", delimiter=",", skiprows=2, usecols=range(1, 6))
SEXES = np.eye(2)[SEX.astype(int)]
ALONE = np.eye(2)[(np.arange(100) == 24).astype(int)]  # the moved one, and all others
MOVED = [-15, -10, -5, 0, 5, 10, 15, 20]
PUBLISHED = {
    "tied": [49, 49, 21, 19, 21, 50, 47, 49],
    "student_t(tied, common)": [19, 19, 20, 18, 20, 20, 19, 20],
}


def moved(by):
    x = CRABS.copy()
    x[24, 1] += by
    return x


@functools.partial(quick_jit, static_argnames="name")
def fitted(resp, x, name):
    start = jaxgmm.m_step(resp, x, covariance_type=name, reg_covar=0.0)
    result = jaxgmm.fit(start, x, reg_covar=0.0, max_iter=5000)
    return result.log_likelihood, result.status, jaxgmm.predict(result.params, x)


def test_a_moved_value_misleads_gaussians_and_not_t_components_as_published(double):
    """At the better optimum of two starts, the sexes and the moved crab alone; of t at that of the sexes.

    For the shifts −10, 10 and 15 it is the best of 600 random starts, of t without a component for one crab.
    For the others this was not checked.
    """
    for name, starts in (("tied", (SEXES, ALONE)), ("student_t(tied, common)", (SEXES,))):
        wrong = []
        for by in MOVED:
            fits = [fitted(resp, moved(by), name=name) for resp in starts]
            assert all(status == jaxgmm.Status.CONVERGED for _, status, _ in fits)
            labels = np.asarray(max(fits, key=lambda fit: float(fit[0]))[2]) == 1
            wrong.append(min((labels != SEX).sum(), (labels == SEX).sum()))
        np.testing.assert_allclose(wrong, PUBLISHED[name], atol=2)
