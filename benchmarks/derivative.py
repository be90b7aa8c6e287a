"""What the derivative of a fit costs, in EM steps of the same process, and what it keeps in memory.

    python benchmarks/derivative.py --n-samples 100000 --n-features 8 --n-components 8

CPU time of the whole process; the ratio to an EM step is what can be compared between machines.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxgmm
from jaxgmm import EMOptions


def cpu_time(function, *arguments, repeat=3):
    """The least CPU time of some calls, in milliseconds, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeat):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def problem(args, n_samples):
    rng = np.random.default_rng(args.seed)
    means = rng.normal(size=(args.n_components, args.n_features)) * args.separation
    labels = rng.integers(args.n_components, size=n_samples)
    X = means[labels] + rng.normal(size=(n_samples, args.n_features))
    resp = np.eye(args.n_components)[labels]
    X, resp = jnp.asarray(X, args.dtype), jnp.asarray(resp, args.dtype)
    start = jaxgmm.m_step(resp, X, covariance_type=args.covariance_type)
    return X, jaxgmm.fit(start, X, max_iter=args.max_iter)


def total(params):
    return jnp.sin(params.means).sum() + params.covariances.sum() + params.weights[0]


def row(name, milliseconds, step, program, X):
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    print(f"{name:<36}{milliseconds:>10.1f}{milliseconds / step:>12.1f}{memory:>16.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-samples", type=int, default=100_000)
    parser.add_argument("--n-features", type=int, default=8)
    parser.add_argument("--n-components", type=int, default=8)
    parser.add_argument("--separation", type=float, default=1.5, help="of the means, in widths")
    parser.add_argument("--covariance-type", default="full")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--unrolled-samples", type=int, default=1000, help="rows for 400 unrolled steps")
    parser.add_argument("--max-iter", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    sizes = f"D={args.n_features}, K={args.n_components}"
    print(f"jax {jax.__version__}, {args.dtype}, {args.covariance_type}, {sizes}")
    print(f"{'':<36}{'CPU ms':>10}{'EM steps':>12}{'temporary MB':>16}")
    for n, unroll in ((args.n_samples, False), (args.unrolled_samples, True)):
        if n < 1:
            continue
        X, fitted = problem(args, n)
        report = jaxgmm.inference.fit_diagnostics(fitted.params, X)
        print(
            f"N={n}: {jaxgmm.Status(int(fitted.status)).name} after {int(fitted.n_iter)} steps, "
            f"rate {float(report.rate):.4f}, {int(report.n_products)} products for a random right-hand side"
        )
        params = fitted.params
        step = cpu_time(lambda p, X=X: jaxgmm.em_step(p, X), params)
        print(f"{'EM step':<36}{step:>10.1f}{1.0:>12.1f}")

        # From the fit itself, so that the loop takes next to no steps and what is left is the derivative.
        def value(X, params=params):
            return total(jaxgmm.fit(params, X, options=EMOptions(unconverged_gradient="ignore")).params)

        for name, function in (("fit again, from the fit", value), ("its gradient in X", jax.grad(value))):
            program = jax.jit(function).lower(X).compile()
            row(name, cpu_time(program, X), step, program, X)
        if unroll:

            def unrolled(X, params=params):
                return total(jaxgmm.gradients.fit_unrolled(params, X, 400).params)

            program = jax.jit(jax.grad(unrolled)).lower(X).compile()
            row("gradient of 400 unrolled steps", cpu_time(program, X), step, program, X)


if __name__ == "__main__":
    main()
