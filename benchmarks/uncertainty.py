"""Is what `jaxgmm` says of a fit's uncertainty true? Against simulation, refits and scikit-learn's clock.

Run it from the repository's root, in the environment that CONTRIBUTING.md describes; the last part needs
scikit-learn too:

    python benchmarks/uncertainty.py              # everything
    python benchmarks/uncertainty.py coverage     # one part

The parts are `errors` (standard errors against bootstraps), `coverage` (of 95 % intervals), `leave-one-out`
(against real refits), `ratio` (size and power of the likelihood ratio test) and `clock`.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm import EMOptions
from jaxgmm.inference._local_coordinates import entries

N_SAMPLES = 800
FIELDS = ("weights", "means", "covariances")


def truth():
    """Three overlapping components in two dimensions, all of them well identified by 800 samples."""
    covariances = np.array([[[1.0, 0.5], [0.5, 1.0]], [[1.5, -0.4], [-0.4, 0.6]], [[0.5, 0.0], [0.0, 2.0]]])
    return jaxgmm.make_params(
        np.array([0.3, 0.3, 0.4]), np.array([[0.0, 0.0], [4.0, 0.5], [1.5, 5.0]]), covariances
    )


def one_fit(seed=0):
    params = truth()
    X, _ = jaxgmm.sample(jax.random.key(seed), params, N_SAMPLES)
    return jaxgmm.check(jaxgmm.fit(params, X, tol=1e-9, reg_covar=0.0)).params, X


def errors(n_replicates, **_):
    params, X = one_fit()
    print(f"\nStandard errors / bootstrap standard errors, N = {N_SAMPLES}, {n_replicates} refits")
    print(f"{'kind':>10} {'bootstrap':>14} {'median ratio':>13} {'median |ratio - 1|':>19} {'failed':>7}")
    for bootstrap in ("nonparametric", "weighted", "parametric"):
        refits = jaxgmm.inference.bootstrap(
            jax.random.key(1), params, X, n_replicates=n_replicates, kind=bootstrap
        )
        refitted = refits.standard_errors()
        for kind in ("observed", "sandwich"):
            direct = jaxgmm.inference.standard_errors(params, X, kind=kind)
            ratio = np.concatenate(
                [np.ravel(np.asarray(getattr(direct, f)) / np.asarray(getattr(refitted, f))) for f in FIELDS]
            )
            print(
                f"{kind:>10} {bootstrap:>14} {np.median(ratio):13.3f} {np.median(np.abs(ratio - 1)):19.3f} "
                f"{int((~refits.usable).sum()):7d}"
            )


def coverage(n_data, **_):
    params = truth()

    @functools.partial(jax.jit, static_argnames="kind")
    def covered(keys, kind):
        def one(key):
            X, _ = jaxgmm.sample(key, params, N_SAMPLES)
            fitted = jaxgmm.fit(params, X, reg_covar=0.0, options=EMOptions(history_size=1))
            intervals = jaxgmm.inference.confidence_intervals(fitted.params, X, kind=kind)
            inside = jax.tree.map(
                lambda low, true, high: (low <= true) & (true <= high),
                intervals.lower, entries(params), intervals.upper,
            )  # fmt: skip
            return inside, intervals.valid

        return jax.lax.map(one, keys)

    print(f"\nCoverage of 95 % intervals in {n_data} data sets, N = {N_SAMPLES}, in per cent")
    print(f"{'kind':>10} {'weights':>8} {'means':>6} {'variances':>10} {'covariances':>12}   each entry")
    for kind in ("observed", "sandwich"):
        inside, valid = covered(jax.random.split(jax.random.key(2), n_data), kind)
        percent = [100 * np.asarray(getattr(inside, f)).mean(0) for f in FIELDS]
        variances = np.einsum("kdd->kd", percent[2])
        print(
            f"{kind:>10} {percent[0].mean():8.1f} {percent[1].mean():6.1f} {variances.mean():10.1f} "
            f"{percent[2][:, 0, 1].mean():12.1f}   "
            + " ".join(f"{p:.1f}" for p in np.concatenate([np.ravel(a) for a in percent]))
            + ("" if bool(valid.all()) else f"   ({int((~valid).sum())} not valid)")
        )


def leave_one_out(**_):
    params, X = one_fit()
    rows = np.arange(N_SAMPLES)

    @jax.jit
    def refits():
        def one(row):
            w = jnp.ones(N_SAMPLES, X.dtype).at[row].set(0)
            refit = jaxgmm.fit(
                params,
                X,
                w,
                tol=1e-10,
                max_iter=5000,
                reg_covar=0.0,
                options=EMOptions(history_size=1),
            )
            return refit.params, jaxgmm.log_prob(refit.params, X[row][None, :])[0]

        return jax.lax.map(one, jnp.asarray(rows, jnp.int32))

    def flat(e):
        return np.concatenate([np.asarray(getattr(e, f)).reshape(N_SAMPLES, -1) for f in FIELDS], axis=1)

    base = flat(jax.tree.map(lambda a: jnp.broadcast_to(a, (N_SAMPLES, *a.shape)), entries(params)))
    direct = jaxgmm.inference.standard_errors(params, X)
    unit = np.concatenate([np.asarray(getattr(direct, f)).ravel() for f in FIELDS])
    real_params, real_log_prob = refits()
    real = (flat(jax.vmap(entries)(real_params)) - base) / unit
    loo = jaxgmm.inference.leave_one_out(params, X, rows=rows)
    linear = -flat(jaxgmm.inference.influence(params, X)) / unit
    newton = (flat(jax.vmap(entries)(loo.params)) - base) / unit
    before = np.asarray(jaxgmm.log_prob(params, X))
    fall = np.asarray(real_log_prob) - before

    print(f"\nLeaving one of {N_SAMPLES} out: relative errors against all {N_SAMPLES} refits")
    print(f"{'':>36} {'median':>8} {'90 %':>8} {'worst':>8}")
    for name, error in {
        "parameters by influence (norm)": np.linalg.norm(linear - real, axis=1)
        / np.linalg.norm(real, axis=1),
        "parameters by leave_one_out (norm)": np.linalg.norm(newton - real, axis=1)
        / np.linalg.norm(real, axis=1),
        "parameters by influence (each)": np.abs(linear - real) / np.abs(real),
        "parameters by leave_one_out (each)": np.abs(newton - real) / np.abs(real),
        "change of log p(x_i)": np.abs((np.asarray(loo.log_prob) - before) / fall - 1),
    }.items():
        print(f"{name:>36} {np.median(error):8.4f} {np.quantile(error, 0.9):8.4f} {error.max():8.4f}")
    print(
        f"sum of log p: in sample {before.sum():.3f}, left out by refits {np.sum(real_log_prob):.3f}, "
        f"approximated {float(loo.log_prob.sum()):.3f}"
    )


def ratio(n_tests, **_):
    one = jaxgmm.make_params([1.0], [[0.0, 0.0]], [[[1.0, 0.3], [0.3, 1.0]]])
    two = jaxgmm.make_params([0.5, 0.5], [[-1.1, 0.0], [1.1, 0.0]], np.stack([np.eye(2)] * 2), "full")
    print(
        f"\nLikelihood ratio test of 1 against 2 components, N = 200, 39 replicates, {n_tests} data sets each"
    )
    for name, params in {"one component (size)": one, "two at 2.2 widths (power)": two}.items():
        p_values = []
        for key in jax.random.split(jax.random.key(3), n_tests):
            key_data, key_test = jax.random.split(key)
            X, _ = jaxgmm.sample(key_data, params, 200)
            test = jaxgmm.inference.bootstrap_likelihood_ratio(
                key_test, X, 1, n_replicates=39, n_init=3, tol=1e-4
            )
            p_values.append(float(test.p_value))
        p = np.array(p_values)
        share = [100 * (p <= level).mean() for level in (0.05, 0.25)]
        print(f"{name:>26}: p <= 0.05 in {share[0]:.0f} %, p <= 0.25 in {share[1]:.0f} %")


def clock(n_replicates, **_):
    from sklearn.mixture import GaussianMixture

    params, X = one_fit()
    rng = np.random.default_rng(4)
    x = np.asarray(X)
    weights, means, covariances = (np.asarray(getattr(params, f)) for f in FIELDS)
    factors = np.linalg.inv(np.linalg.cholesky(covariances)).swapaxes(1, 2)

    def scikit(tol, n):
        """n refits from the same start, scaled to n_replicates; their shortfall is measured off the clock."""
        gaps, seconds, cpu = [], 0.0, 0.0
        for i in range(n):
            rows = x[rng.integers(len(x), size=len(x))]
            model = GaussianMixture(3, tol=tol, max_iter=1000, warm_start=True)
            model.weights_, model.means_, model.covariances_ = weights, means, covariances
            model.precisions_cholesky_, model.converged_, model.lower_bound_ = factors, True, -np.inf
            wall, used = time.perf_counter(), time.process_time()
            model.fit(rows)
            seconds, cpu = seconds + time.perf_counter() - wall, cpu + time.process_time() - used
            if i < 20:
                start = jaxgmm.make_params(model.weights_, model.means_, model.covariances_)
                gaps.append(float(jaxgmm.fit(start, rows, tol=1e-9).log_likelihood) - model.score(rows))
        return seconds * n_replicates / n, cpu * n_replicates / n, np.median(gaps)

    def ours(key, **options):
        wall, used = time.perf_counter(), time.process_time()
        refits = jax.block_until_ready(
            jaxgmm.inference.bootstrap(key, params, X, n_replicates=n_replicates, **options)
        )
        return time.perf_counter() - wall, time.process_time() - used, refits

    print(
        f"\n{n_replicates} bootstrap refits, N = {N_SAMPLES}, K = 3, D = 2, float64, both started at the fit"
    )
    print(
        "the runs alternate; CPU is user + system (OMP_NUM_THREADS=1 keeps BLAS from spinning);\n"
        "'short of' is the median shortfall of the mean log-likelihood"
    )
    print(f"{'':>34} {'wall s':>8} {'CPU s':>8} {'short of':>9}")
    wall, cpu, _ = ours(jax.random.key(5))
    print(f"{'jaxgmm, with its compilation':>34} {wall:8.2f} {cpu:8.2f}")
    tight = ours(jax.random.key(6), tol=1e-9)[2].log_likelihood
    ours(jax.random.key(6), batch_size=n_replicates)
    for _ in range(2):
        for name, options in {
            "jaxgmm": {},
            "jaxgmm, tol=0.02": {"tol": 0.02},
            "jaxgmm, one vmap": {"batch_size": n_replicates},
        }.items():
            wall, cpu, refits = ours(jax.random.key(6), **options)
            gap = float(jnp.median(tight - refits.log_likelihood))
            print(f"{name:>34} {wall:8.2f} {cpu:8.2f} {gap:9.1e}")
        for tol in (1e-3, 1e-5, 1e-7):
            wall, cpu, gap = scikit(tol, min(50, n_replicates))
            print(f"{f'scikit-learn, tol={tol:g}':>34} {wall:8.2f} {cpu:8.2f} {gap:9.1e}")


PARTS = {f.__name__.replace("_", "-"): f for f in (errors, coverage, leave_one_out, ratio, clock)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--n-replicates", type=int, default=400, help="bootstrap refits")
    parser.add_argument("--n-data", type=int, default=1000, help="data sets for the coverage")
    parser.add_argument("--n-tests", type=int, default=100, help="data sets for the likelihood ratio test")
    options = parser.parse_args()
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    jax.config.update("jax_enable_x64", True)
    for part in options.parts or PARTS:
        PARTS[part](**vars(options))


if __name__ == "__main__":
    main()
