"""Threads: several structures at once, while XLA compiles one and Python traces another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def _settings() -> dict[str, Any]:
    """JAX's settings as this thread sees them: a context manager may change them for one thread alone."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


def side_by_side(
    function: Callable[[str, Any], T],
    arguments: Mapping[str, Any],
    progress: Callable[[str], object] | None = None,
    *,
    at_once: int,
) -> Iterator[tuple[str, T]]:
    """(name, function(name, argument)) in their order, up to `at_once` under way at a time.

    What a thread has begun it finishes, also after Ctrl-C: let that be short. One by one where the settings
    of JAX are other in a new thread than they are in this one.
    """

    def announce(name: str) -> None:
        if progress is not None:
            progress(name)

    if at_once > 1 and len(arguments) > 1:
        with ThreadPoolExecutor(at_once) as pool:
            if pool.submit(_settings).result() == _settings():
                try:
                    futures = {name: pool.submit(function, name, a) for name, a in arguments.items()}
                    for name, future in futures.items():
                        announce(name)
                        yield name, future.result()
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
                return
    for name, argument in arguments.items():
        announce(name)
        yield name, function(name, argument)
