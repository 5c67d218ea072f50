"""``ensemblekit neural ingest | plan | export | report | select | ...``: networks' snapshots from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemblekit.cli import neural_evidence, neural_report
from ensemblekit.cli.console import size, stderr, stdout, table
from ensemblekit.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Snapshots of neural networks: bring checkpoints in, plan cycles, write "
                                             "checkpoints out.")


app.command(no_args_is_help=True)(neural_report.report)
for command in (neural_evidence.select, neural_evidence.equivalent, neural_evidence.ergodicity, neural_evidence.detect):
    app.command(no_args_is_help=True)(command)


@app.command(no_args_is_help=True)
def ingest(
    paths: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT... STORE", show_default=False,
                                                help="Checkpoints in their order, then the store to make.")],
    key: Annotated[str | None, typer.Option("--key", help="Of the weights where a checkpoint holds several, such as "
                                            "state_dict_ema.")] = None,
) -> None:
    """Checkpoints (.pt, .pth, .bin, .ckpt, .safetensors, HuggingFace folders) into a new store."""
    from ensemblekit import neural

    if len(paths) < 2:
        raise InputError("name one checkpoint or more, then the store to make: neural ingest ckpt/*.pt weights.h5")
    *checkpoints, store = paths
    if store.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".bin"):
        raise InputError(f"the last name is that of the store to make; {store} looks like a checkpoint")
    made = neural.ingest(checkpoints, store, key=key)
    print_store(made)
    stderr.print(f"written: {store} ({size(store.stat().st_size)})", style="dim", markup=False)


@app.command(no_args_is_help=True)
def plan(
    epochs: Annotated[float | None, typer.Option("--epochs", "-e", help="Passes over the data in all.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option("--steps-per-epoch", "-s", help="Batches an epoch.")] = None,
    total_steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps in all, instead of the two.")] = None,
    cycles: Annotated[int | None, typer.Option("--cycles", "-m", help="Check this number of cycles.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="A limit of time.")] = None,
    seconds_per_step: Annotated[float | None, typer.Option("--seconds-per-step", help="As measured.")] = None,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Batches an optimizer step.")] = 1,
) -> None:
    """Propose a number of cycles for a budget, and say what is doubtful about it."""
    from ensemblekit import neural

    found = neural.plan(epochs, steps_per_epoch, total_steps=total_steps, n_cycles=cycles, seconds=seconds,
                        seconds_per_step=seconds_per_step, accumulate=accumulate)
    first, *warnings = str(found).splitlines()
    stdout.print(first, markup=False, soft_wrap=True)
    for line in warnings:
        stdout.print(line, style="yellow", markup=False, soft_wrap=True)


@app.command(no_args_is_help=True)
def export(
    store: Annotated[Path, typer.Argument(metavar="STORE", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Ends in .pt, .pth or .safetensors.")],
    snapshot: Annotated[int, typer.Option("--snapshot", "-k", help="Its number; negative from the end.")] = -1,
    everything: Annotated[bool, typer.Option("--all", help="All snapshots, each with its number in the name.")] = False,
) -> None:
    """Write snapshots as state dicts that other programs read."""
    from ensemblekit import neural

    for path in neural.export(store, out, None if everything else snapshot):
        stderr.print(f"written: {path} ({size(path.stat().st_size)})", style="dim", markup=False)


def print_store(store: object) -> None:
    """What came in: one row a snapshot."""
    rows = table("snapshot", "step", "content hash", right=("snapshot", "step"))
    times, hashes = store["parameters"].times, store["content_hash"][:]     # type: ignore[index]
    for k, (at, made) in enumerate(zip(times, hashes, strict=True)):
        rows.add_row(str(k), f"{at:g}", made.tobytes().hex())
    stdout.print(rows)
    stdout.print(f"{len(times)} snapshots of {store['parameters'].shape[1]:,} parameters",    # type: ignore[index]
                 markup=False)
