"""One library's EM in a process of its own; `speed.py` starts it and talks to it by lines of JSON.

    {"do": "prepare", case}        -> {"ready": seconds until the first fit of two iterations was done}
    {"do": "run", "n_iter": n}     -> {"cpu": s, "wall": s}
    {"do": "finish"}               -> {"log_likelihood": float64 mean, "peak_mb": most resident memory}

Every library gets the same float32 data, the same start and a fixed number of iterations. `agreement.py`
uses these classes too, with float64 data.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from typing import Any, ClassVar

import numpy as np


def data(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X (N, D) and a start: weights (K,), means (K, D) and variances (D,), the same for every component.

    A cluster's standard deviation along an axis is about 0.85. The distance between two centres is 2.1 √D, or
    2.1 for overlapping clusters.
    """
    rng = np.random.default_rng(case["seed"])
    n, d, k = case["n"], case["d"], case["k"]
    spread = 1.5 / np.sqrt(d) if case.get("clusters") == "overlapping" else 1.5
    centres = spread * rng.normal(size=(k, d))
    roots = rng.normal(size=(k, d, d)) / np.sqrt(d) * 0.6 + 0.6 * np.eye(d)
    labels = rng.integers(k, size=n)
    x = np.empty((n, d), np.float32)
    for j in range(k):
        rows = labels == j
        x[rows] = centres[j] + rng.normal(size=(rows.sum(), d)) @ roots[j].T
    return x, np.full(k, 1 / k, np.float32), x[rng.choice(n, k, replace=False)], x.var(0)


def covariances(kind: str, k: int, variances: np.ndarray) -> np.ndarray:
    """The start's covariances in scikit-learn's shapes."""
    dense = np.diag(variances)
    return {
        "full": np.broadcast_to(dense, (k, *dense.shape)),
        "tied": dense,
        "diag": np.broadcast_to(variances, (k, len(variances))),
        "spherical": np.full(k, variances.mean(), variances.dtype),
    }[kind].astype(variances.dtype)


class Jaxgmm:
    """This library, with the kernel that it chooses."""

    reg_covar = 1e-6

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        import jax
        import jax.numpy as jnp

        import jaxgmm

        if jax.config.jax_platforms == "cpu":
            jaxgmm.parallel.use_cores()
        self.jax, self.jaxgmm = jax, jaxgmm
        self.x = jnp.asarray(x)
        self.start = jaxgmm.make_params(weights, means, cov, kind)

    def run(self, n_iter: int) -> None:
        self.result = self.jaxgmm.fit(
            self.start, self.x, tol=0.0, max_iter=n_iter, reg_covar=self.reg_covar, accelerate=False
        )
        self.jax.block_until_ready(self.result)

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p = self.result.params
        return np.asarray(p.weights), np.asarray(p.means), np.asarray(p.covariances)


class Sklearn:
    """scikit-learn's GaussianMixture, warm-started so that no k-means is counted."""

    reg_covar = 1e-6

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        from sklearn.mixture import GaussianMixture
        from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

        warnings.simplefilter("ignore")
        self.x, self.start = x, (weights, means, cov, _compute_precision_cholesky(cov, kind))
        self.model = GaussianMixture(
            len(weights), covariance_type=kind, tol=0.0, reg_covar=self.reg_covar, warm_start=True
        )

    def run(self, n_iter: int) -> None:
        m = self.model
        m.weights_, m.means_, m.covariances_, m.precisions_cholesky_ = (a.copy() for a in self.start)
        m.converged_, m.lower_bound_, m.max_iter = False, -np.inf, n_iter
        m.fit(self.x)

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.model.weights_, self.model.means_, self.model.covariances_


class Gmmx:
    """gmmx, another JAX library; it stops by a change of the likelihood, which a tolerance of −1 never is."""

    reg_covar = 1e-6

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        import jax
        import jax.numpy as jnp
        from gmmx import EMFitter, GaussianMixtureModelJax

        if kind not in ("full", "diag"):
            raise NotImplementedError(f"gmmx has no {kind} covariances")
        self.jax, self.fitter, self.x = jax, EMFitter, jnp.asarray(x)
        self.start = GaussianMixtureModelJax.from_squeezed(
            means=jnp.asarray(means), covariances=jnp.asarray(cov), weights=jnp.asarray(weights),
            covariance_type=kind,
        )  # fmt: skip

    def run(self, n_iter: int) -> None:
        self.result = self.fitter(max_iter=n_iter, tol=-1.0, reg_covar=self.reg_covar).fit(self.x, self.start)
        self.jax.block_until_ready(self.result.gmm)

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        g = self.result.gmm
        return g.weights_numpy, g.means_numpy, g.covariances.values_numpy


class Torch:
    """EM as one would write it in PyTorch: batched Cholesky factors, their inverses, and products."""

    reg_covar = 1e-6

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        import torch

        device = os.environ.get("BENCHMARK_TORCH_DEVICE", "cpu")
        self.torch, self.kind, self.x = torch, kind, torch.from_numpy(x).to(device)
        self.start = [torch.from_numpy(np.array(a)).to(device) for a in (weights, means, cov)]

    def run(self, n_iter: int) -> None:
        torch, x = self.torch, self.x
        weights, means, cov = self.start
        n, d = x.shape
        with torch.no_grad():
            for _ in range(n_iter):
                if self.kind in ("full", "tied"):
                    factor = torch.linalg.cholesky(cov)
                    inverse = torch.linalg.inv(factor).expand(len(weights), d, d)
                    y = torch.einsum("kde,ne->knd", inverse, x) - (inverse @ means[:, :, None])[:, None, :, 0]
                    distance = y.square().sum(-1)
                    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                else:
                    variances = cov if self.kind == "diag" else cov[:, None].expand(-1, d)
                    precision = 1 / variances
                    distance = (
                        precision @ x.square().T
                        - 2 * (precision * means) @ x.T
                        + (precision * means.square()).sum(1)[:, None]
                    )
                    log_det = variances.log().sum(1)
                joint = weights.log()[:, None] - 0.5 * (distance + log_det.reshape(-1, 1))
                resp = torch.softmax(joint, 0)
                count = resp.sum(1)
                weights, means = count / n, resp @ x / count[:, None]
                if self.kind in ("full", "tied"):
                    r = x[None] - means[:, None]
                    cov = torch.einsum("kn,knd,kne->kde", resp, r, r) / count[:, None, None]
                    if self.kind == "tied":
                        cov = (cov * weights[:, None, None]).sum(0)
                    cov = cov + self.reg_covar * torch.eye(d, dtype=x.dtype, device=x.device)
                else:
                    cov = resp @ x.square() / count[:, None] - means.square() + self.reg_covar
                    cov = cov if self.kind == "diag" else cov.mean(1)
        self.result = weights, means, cov
        float(cov.sum())  # waits for a GPU

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(a.cpu().numpy() for a in self.result)


class Pomegranate:
    """pomegranate's GeneralMixtureModel of Normal distributions."""

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        import torch
        from pomegranate.distributions import Normal
        from pomegranate.gmm import GeneralMixtureModel

        if kind not in ("full", "diag"):
            raise NotImplementedError(f"pomegranate's mixtures of normals take no {kind} covariances")
        self.x, self.start, self.kind = torch.from_numpy(x), (weights, means, cov), kind
        self.normal, self.mixture = Normal, GeneralMixtureModel

    def run(self, n_iter: int) -> None:
        weights, means, cov = self.start
        parts = [
            self.normal(m.copy(), c.copy(), covariance_type=self.kind)
            for m, c in zip(means, cov, strict=True)
        ]
        self.result = self.mixture(parts, priors=weights.copy(), tol=-np.inf, max_iter=n_iter)
        self.result.fit(self.x)

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = self.result.distributions
        return (
            self.result.priors.numpy(),
            np.stack([p.means.numpy() for p in parts]),
            np.stack([p.covs.numpy() for p in parts]),
        )


def never_stop(mixture: Any) -> None:
    """Switch off tgmm's test of convergence.

    It takes no tolerance of 0, and with any other it ends where two likelihoods are equal in float32.
    """
    mixture._check_convergence = lambda *_: False


class Tgmm:
    """tgmm's GaussianMixture in PyTorch; without a tolerance, its test of convergence is switched off."""

    reg_covar = 1e-6
    tol: float | None = None
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray, kind: str):
        import torch
        from tgmm import GaussianMixture

        warnings.simplefilter("ignore")
        device = os.environ.get("BENCHMARK_TORCH_DEVICE", "cpu")
        self.x, self.device = torch.from_numpy(x).to(device), device
        start = (torch.from_numpy(np.array(a)).to(device) for a in (weights, means, cov))
        self.start = dict(zip(("init_weights", "init_means", "init_covariances"), start, strict=True))
        self.mixture, self.kind = GaussianMixture, {"tied": "tied_full"}.get(kind, kind)

    def run(self, n_iter: int) -> None:
        k, d = self.start["init_means"].shape
        self.result = self.mixture(
            k, d, covariance_type=self.kind, max_iter=n_iter, reg_covar=self.reg_covar, device=self.device,
            **self.start, **self.options,
        )  # fmt: skip
        if self.tol is None:
            never_stop(self.result)
        self.result.fit(self.x, tol=self.tol)
        float(self.result.covariances_.sum())  # waits for a GPU

    def answer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r = self.result
        return r.weights_.cpu().numpy(), r.means_.cpu().numpy(), r.covariances_.cpu().numpy()


PEERS = {
    "jaxgmm": Jaxgmm, "scikit-learn": Sklearn, "tgmm": Tgmm, "gmmx": Gmmx, "torch": Torch,
    "pomegranate": Pomegranate,
}  # fmt: skip


def dense(cov: np.ndarray, k: int, d: int, kind: str) -> np.ndarray:
    cov = np.asarray(cov, float)
    if cov.shape == (k, d, d):
        return cov
    return {
        "tied": lambda: np.broadcast_to(cov, (k, d, d)),
        "diag": lambda: cov.reshape(k, d)[:, :, None] * np.eye(d),
        "spherical": lambda: cov.reshape(k)[:, None, None] * np.eye(d),
    }[kind]()


def log_likelihood(x: np.ndarray, weights: np.ndarray, means: np.ndarray, cov: np.ndarray) -> float:
    """Mean per sample in float64, of up to 20,000 of the rows."""
    x = x[:20_000].astype(float)
    joint = np.empty((len(weights), len(x)))
    for j, (w, m, c) in enumerate(zip(weights, np.asarray(means, float), cov, strict=True)):
        factor = np.linalg.cholesky(c)
        y = np.linalg.solve(factor, (x - m).T)
        constant = 0.5 * x.shape[1] * np.log(2 * np.pi) + np.log(np.diag(factor)).sum()
        joint[j] = np.log(max(float(w), 1e-300)) - constant - 0.5 * np.square(y).sum(0)
    top = joint.max(0)
    return float((top + np.log(np.exp(joint - top).sum(0))).mean())


def main() -> None:
    name = sys.argv[1]
    peer: Any = None
    x = np.empty((0, 0), np.float32)
    case: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                case = request["case"]
                x, weights, means, variances = data(case)
                clock = time.perf_counter()
                peer = PEERS[name](
                    x, weights, means, covariances(case["kind"], case["k"], variances), case["kind"]
                )
                peer.run(2)
                answer: dict[str, Any] = {"ready": time.perf_counter() - clock}
            elif request["do"] == "run":
                cpu, wall = time.process_time(), time.perf_counter()
                peer.run(request["n_iter"])
                answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                weights, means, cov = peer.answer()
                full = dense(cov, case["k"], case["d"], case["kind"])
                answer = {"log_likelihood": log_likelihood(x, weights, means, full), "peak_mb": peak}
        except (ImportError, NotImplementedError, MemoryError, RuntimeError) as error:
            answer = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
