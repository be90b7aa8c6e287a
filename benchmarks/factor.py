"""Factor analysers against full covariances: time and memory of an EM step, and its error by a dense oracle.

python benchmarks/factor.py [--n-samples 20000] [--n-features 200] [--n-components 8] [--rank 5]
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
import tables

import jaxgmm
from jaxgmm.components import factor


def data(n: int, d: int, k: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """X float32 (n, d) from k overlapping factor analysers of rank q, and soft responsibilities (n, k)."""
    rng = np.random.default_rng(seed)
    loadings, noise = rng.normal(size=(k, d, q)), rng.uniform(0.5, 1.5, size=(k, d))
    means, labels = 0.5 * rng.normal(size=(k, d)), rng.integers(k, size=n)
    x = means[labels] + noise[labels] * rng.normal(size=(n, d))
    for j in range(k):
        mine = labels == j
        x[mine] += rng.normal(size=(mine.sum(), q)) @ loadings[j].T
    resp = 0.7 * np.eye(k)[labels] + 0.3 / k
    return x.astype(np.float32), resp.astype(np.float32)


def dense_step(params: jaxgmm.GMMParams, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances after one EM step (Ghahramani & Hinton 1996), in float64 with D × D matrices."""
    x = x.astype(np.float64)
    means = np.asarray(params.means, np.float64)
    loadings = np.asarray(params.scale["loadings"], np.float64)
    noise = np.asarray(params.scale["noise"], np.float64)
    covs = [a @ a.T + np.diag(s * s) for a, s in zip(loadings, noise, strict=True)]
    joint = np.empty((len(x), len(means)))
    for k, (mu, cov) in enumerate(zip(means, covs, strict=True)):
        y = np.linalg.solve(np.linalg.cholesky(cov), (x - mu).T)
        joint[:, k] = float(params.log_weights[k]) - 0.5 * ((y * y).sum(0) + np.linalg.slogdet(cov)[1])
    r = np.exp(joint - joint.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    n = r.sum(0)
    new_means, new_covs = r.T @ x / n[:, None], []
    for k, (cov, old) in enumerate(zip(covs, loadings, strict=True)):
        gap = x - new_means[k]
        s = (gap * r[:, k, None]).T @ gap / n[k]
        beta = np.linalg.solve(cov, old).T
        new = s @ beta.T @ np.linalg.inv(np.eye(old.shape[1]) - beta @ old + beta @ s @ beta.T)
        new_covs.append(new @ new.T + np.diag(np.diag(s - new @ beta @ s)))
    return new_means, np.stack(new_covs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-samples", type=int, default=20_000)
    parser.add_argument("--n-features", type=int, default=200)
    parser.add_argument("--n-components", type=int, default=8)
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="put the table into a file for tables.py")
    a = parser.parse_args()
    n, d, k, q = a.n_samples, a.n_features, a.n_components, a.rank

    x, resp = data(n, d, k, q)
    step = jax.jit(lambda p, x: jaxgmm.em_step(p, x, reg_covar=0.0))
    starts = {f: jaxgmm.m_step(resp, x, covariance_type=f) for f in (factor(q), "full")}
    programs = {f: step.lower(p, x).compile() for f, p in starts.items()}
    device = jax.device_put(x)
    seconds: dict[object, list[float]] = {f: [] for f in starts}
    for turn in range(a.repeats + 1):
        for f, p in starts.items():
            before = time.perf_counter()
            jax.block_until_ready(programs[f](p, device))
            if turn:
                seconds[f].append(time.perf_counter() - before)

    print(f"N={n} D={d} K={k} q={q} float32 on {jax.devices()[0].device_kind}")
    print(f"{'structure':<12}{'ms per EM step (least, median)':>34}{'temporary MiB':>16}{'parameters':>12}")
    rows = []
    for f, p in starts.items():
        temporary = programs[f].memory_analysis().temp_size_in_bytes / 2**20
        least, median = 1e3 * min(seconds[f]), 1e3 * float(np.median(seconds[f]))
        measured = [tables.significant(v) for v in (least, median, temporary)]
        rows.append([p.covariance.name, *measured, int(jaxgmm.n_parameters(p))])
        print(
            f"{p.covariance.name:<12}{least:>18.1f}{median:>16.1f}{temporary:>16.1f}{jaxgmm.n_parameters(p):>12}"
        )
    print(f"X itself: {x.nbytes / 2**20:.1f} MiB; N + K D q numbers: {4 * (n + k * d * q) / 2**20:.2f} MiB")

    start = starts[factor(q)]
    got, _ = programs[factor(q)](start, device)
    means, covs = dense_step(start, x)
    widths = np.sqrt(np.einsum("kdd->kd", covs))
    loadings, noise = (np.asarray(got.scale[name], np.float64) for name in ("loadings", "noise"))
    dense = np.einsum("kdq,keq->kde", loadings, loadings) + np.einsum("kd,de->kde", noise**2, np.eye(d))
    gap = np.abs(dense - covs) / widths[:, :, None] / widths[:, None, :]
    shift = np.abs(np.asarray(got.means, np.float64) - means) / widths
    print("largest difference from the dense float64 step, in standard deviations:")
    print(f"means {shift.max():.1e}, covariances {gap.max():.1e}")
    if a.json:
        tables.add(
            a.json, f"Factor analysers, {d} features",
            f"One EM step of factor analysers and of full covariances: {n=:,}, {d=}, {k=}, rank {q}.",
            ["structure", "least, ms", "median, ms", "temporary memory, MiB", "parameters"], rows, ("jax",),
            notes=[f"Largest difference from a dense float64 step, in standard deviations: means "
                   f"{shift.max():.1e}, covariances {gap.max():.1e}."],
        )  # fmt: skip


if __name__ == "__main__":
    main()
