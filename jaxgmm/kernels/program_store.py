"""Compiled programs kept on disk, and loaded in another process without tracing, lowering or compiling.

An entry is machine code. It is read only from a folder that nobody else may write to, and its name is a
digest of all that decides it: the package's source, the releases of JAX and its native library, the
processor, XLA's flags, JAX's settings, the function, its static arguments, and the shapes and types of the
arrays. Whatever goes wrong with an entry, the program is compiled as if there were no store.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import pickle
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib.version
import numpy as np
from jax.experimental import serialize_executable

from jaxgmm.kernels.linalg import look_lapack_up

LIMIT = 2**29  # bytes of all entries; the least recently used ones go first
SUFFIX = ".program"
_FORMAT = b"jaxgmm program 1\n"
# Up to 0.6.0 a program that was loaded gave other results on the CPU than the one that was stored.
AVAILABLE = jax.__version_info__ >= (0, 6, 1)
# Where functions and classes of a key and of a stored result may come from: the key holds these packages'
# releases, or their source. A function of the user's own has a name, but other source at another time.
_NAMED = ("jaxgmm", "jax", "jaxlib", "numpy", "ml_dtypes", "builtins", "collections", "copyreg", "functools")
# What tracing depends on besides the arguments.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# With any of these set, programs are left to JAX. One out of JAX's own cache would not run when stored again.
_OTHERWISE = (
    "jax_compilation_cache_dir",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_check_tracer_leaks",
    "jax_enable_checks",
)


class Unnamed(Exception):
    """Something in a key, or in a program's result, is known by no stable name."""


class Call(NamedTuple):
    """One call of a program: what decides its compiled form, and the numbers.

    Fields:
      static: names and values of the static arguments.
      tree: structure of the others, a dictionary by name.
      types: shape, dtype and weak type of each leaf.
      settings: of JAX.
    """

    static: tuple[tuple[str, Any], ...]
    tree: Any
    types: tuple[Any, ...]
    settings: tuple[Any, ...]


class Program(NamedTuple):
    """A compiled program: a function of a flat list of arrays, and the structure of the list it gives."""

    run: Callable[..., list[Any]]
    tree: Any
    is_loaded: bool = False


def is_one_cpu() -> bool:
    """Whether JAX computes on one CPU device, and nowhere else."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _settings() -> tuple[Any, ...] | None:
    """JAX's settings that decide a program in this thread; None where no program is to be kept."""
    config = jax.config
    if folder() is None or not is_one_cpu():
        return None
    if any(getattr(config, name, False) for name in _OTHERWISE):
        return None
    return tuple(getattr(config, name, None) for name in _SETTINGS)


def call(
    args: tuple[Any, ...], kwargs: dict[str, Any], static: frozenset[str]
) -> tuple[Call | None, list[Any]]:
    """What decides the program of a call, and its numbers; no call where no program is to be kept."""
    settings = _settings()
    if settings is None:
        return None, []
    named = {name: value for name, value in kwargs.items() if name not in static}
    leaves, tree = jax.tree.flatten((args, named))
    fixed = tuple((name, kwargs[name]) for name in sorted(static & kwargs.keys()))
    types = tuple(map(_type_of, leaves))
    return Call(fixed, tree, types, settings), [_plain(leaf) for leaf in leaves]


def arguments(call: Call, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call again, from its numbers."""
    whole = [
        jax.random.wrap_key_data(leaf, impl=kind[0]) if _is_key(kind) else leaf
        for leaf, kind in zip(leaves, call.types, strict=True)
    ]
    args, named = jax.tree.unflatten(call.tree, whole)
    return args, named | dict(call.static)


def _type_of(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(jax.random.key_impl(leaf)), leaf.shape
        return leaf.shape, leaf.dtype, leaf.weak_type
    return (leaf.shape, leaf.dtype, False) if isinstance(leaf, np.ndarray | np.generic) else type(leaf)


def _is_key(kind: Any) -> bool:
    return isinstance(kind, tuple) and isinstance(kind[0], str)


def _plain(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def folder() -> pathlib.Path | None:
    """Where programs are kept, or None for nowhere.

    It is $JAXGMM_CACHE, or jaxgmm/programs in $XDG_CACHE_HOME or ~/.cache.
    """
    given = os.environ.get("JAXGMM_CACHE", "")
    if not AVAILABLE or given.lower() in ("off", "0"):
        return None
    if given:
        return pathlib.Path(given).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home, "jaxgmm", "programs") if os.path.isabs(home) else None


def is_own(path: str | os.PathLike[str]) -> bool:
    """Whether no other user may write to a folder: programs that lie there will be run."""
    status = os.stat(path)
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def name_of(function: Any, call: Call, options: Any) -> str | None:
    """The name of a program's entry; None where something in it has no stable name."""
    skeleton = jax.tree.unflatten(call.tree, range(call.tree.num_leaves))
    what = (function, call.static, skeleton, call.types, call.settings, options)
    try:
        return hashlib.sha256(_environment() + _pickled(what)).hexdigest()
    except (Unnamed, OSError):
        return None


def load(name: str) -> Program | None:
    """The program of this name, or None."""
    where = folder()
    try:
        if where is None or not is_own(where):
            return None
        path = where / f"{name}{SUFFIX}"
        content = path.read_bytes()
        head = _FORMAT + name.encode()
        digest, body = content[len(head) : len(head) + 32], content[len(head) + 32 :]
        if not content.startswith(head) or hashlib.sha256(body).digest() != digest:
            return None
        os.utime(path)
        _prepare(b"lapack" in body)
        payload, skeleton, n_arguments = pickle.loads(body)
        out_tree: Any = jax.tree.structure(_Reader(io.BytesIO(skeleton)).load())
        arguments = jax.tree.structure(((0,) * n_arguments, {}))
        flat = jax.tree.structure([0] * out_tree.num_leaves)
        with _without_false_alarms():
            run = serialize_executable.deserialize_and_load(payload, arguments, flat)
        return Program(run, out_tree, is_loaded=True)
    except Exception:
        return None


def save(name: str, compiled: Any, out_tree: Any) -> None:
    """Keep a program; nothing is said where that is not possible."""
    where = folder()
    if where is None:
        return
    try:
        skeleton = _pickled(jax.tree.unflatten(out_tree, range(out_tree.num_leaves)))
        payload, arguments, _ = serialize_executable.serialize(compiled)
        body = pickle.dumps((payload, skeleton, arguments.num_leaves))
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_own(where):
            return
        with tempfile.NamedTemporaryFile(dir=where, suffix=".tmp", delete=False) as stream:
            try:
                stream.write(_FORMAT + name.encode() + hashlib.sha256(body).digest() + body)
                stream.close()
                os.replace(stream.name, where / f"{name}{SUFFIX}")
            except BaseException:
                os.unlink(stream.name)
                raise
        _trim(where)
    except Exception:
        return


def _trim(where: pathlib.Path) -> None:
    """Remove the least recently used entries beyond the limit."""
    kept = sorted(entries(where), key=lambda entry: entry[2], reverse=True)
    total = 0
    for path, size, _ in kept:
        total += size
        if total > LIMIT:
            path.unlink(missing_ok=True)


def entries(where: pathlib.Path) -> Iterator[tuple[pathlib.Path, int, float]]:
    """Path, size in bytes and time of last use of each entry."""
    with os.scandir(where) as files:
        for file in files:
            with contextlib.suppress(OSError):
                if file.name.endswith((SUFFIX, ".tmp")) and file.is_file(follow_symlinks=False):
                    status = file.stat(follow_symlinks=False)
                    yield pathlib.Path(file.path), status.st_size, status.st_mtime


class _Writer(pickle.Pickler):
    """Pickles functions and classes by name, and only those whose source the key holds."""

    def reducer_override(self, value: Any) -> Any:
        by_name = isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__"))
        if by_name and str(value.__module__).partition(".")[0] not in _NAMED:
            raise Unnamed(f"{value!r} is not of the package")
        return NotImplemented


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in _NAMED:
            raise Unnamed(f"{module}.{name}")
        return super().find_class(module, name)


def _pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    writer = _Writer(stream, protocol=5)
    writer.fast = True  # or the bytes depend on which equal values are one object
    try:
        writer.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Unnamed(str(error)) from None
    return stream.getvalue()


@functools.cache
def _environment() -> bytes:
    """A digest of the source, the releases, the native library, the processor and XLA's flags."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    sources = sorted(root.rglob("*.py"))
    if not sources:
        raise OSError("the package's source cannot be read")
    for path in sources:
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    for path in sorted(pathlib.Path(jaxlib.__file__).parent.glob("*.so*")):
        size = path.stat().st_size
        with open(path, "rb") as stream:
            # What identifies a build stands in its first pages.
            digest.update(b"%d" % size + stream.read(2**16))
            stream.seek(max(size - 2**16, 0))
            digest.update(stream.read())
    said = (
        jax.__version__,
        jaxlib.version.__version__,
        np.__version__,
        sys.version,
        platform.platform(),
        _processor(),
        sorted(item for item in os.environ.items() if item[0].startswith(("XLA_", "JAX_"))),
        os.cpu_count(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
    )
    return digest.digest() + repr(said).encode()


def _processor() -> str:
    """What programs that were compiled for this processor may use."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            lines = stream.read(2**14).split("\n\n")[0].splitlines()
        kept = ("flags", "Features", "model name", "cpu family", "model", "stepping", "CPU part")
        return "\n".join(line for line in lines if line.partition(":")[0].strip() in kept)
    except OSError:
        return f"{platform.processor()} {platform.node()}"


@functools.cache
def _prepare(lapack: bool) -> None:
    """Lower a small program: the compiler's context, and LAPACK's functions, must be there before a load."""
    jax.jit(jax.numpy.negative).lower(jax.ShapeDtypeStruct((), np.float32))
    if lapack:
        look_lapack_up()


# While one thread has redirected stderr, no other one may: they would not be restored in the right order.
_stderr = threading.Lock()


@contextlib.contextmanager
def _without_false_alarms() -> Iterator[None]:
    """Leave out of stderr what XLA says of each loaded program on some processors.

    It takes LLVM's hints `prefer-no-gather` and `prefer-no-scatter` for features that the processor lacks
    (xla issue 44565). Whatever else is written to stderr meanwhile is passed on.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    with _stderr, tempfile.TemporaryFile() as stream:
        kept = os.dup(2)
        try:
            os.dup2(stream.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            stream.seek(0)
            for line in stream:
                if b"cpu_aot_loader" not in line or b"feature +prefer-no-" not in line:
                    os.write(2, line)
