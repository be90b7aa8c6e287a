"""Column selection: which columns of a table are the features of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

from jaxgmm.cli.tables import Table, UserError


def choose(table: Table, columns: Sequence[str] | None, weights: str | None) -> tuple[list[str], list[str]]:
    """The columns to fit, and what to tell about the others."""
    if weights is not None:
        table.find(weights)
    if columns is None:
        return table.default_columns(without=weights)
    names = [table.find(name) for name in columns]
    if weights in names:
        raise UserError(f"--weights {weights}: is also among --columns")
    return names, []


def match(
    table: Table, model: str, known: Sequence[str] | None, n_features: int, columns: Sequence[str] | None
) -> list[str]:
    """The columns of `table` that play the model's features, in the model's order."""
    if columns is not None:
        names = [table.find(name) for name in columns]
    elif known is not None and all(name in table.columns for name in known):
        names = list(known)
    elif known is not None and table.named:
        missing = next(name for name in known if name not in table.columns)
        reason = f" ({model} was fitted to {','.join(known)}; --columns says which play their part)"
        raise table.missing(missing, reason)
    else:
        names = table.default_columns(without=None)[0] if table.named else table.names
    if len(names) != n_features:
        fitted = f"{n_features} ({','.join(known)})" if known else str(n_features)
        given = f"{table.path}: {len(names)} column{'s' * (len(names) > 1)} ({','.join(names[:8])})"
        raise UserError(f"{given}, but {model} was fitted to {fitted}; choose them with --columns")
    return names
