"""``ensemblekit neural ingest | plan | export``, and the verbs of the files beside: networks' snapshots from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli import neural_drift, neural_evidence, neural_report, neural_segment, neural_trajectory
from ensemblekit.cli.console import table
from ensemblekit.cli.output import Json, Output, Overwrite, check_file, check_folder_of, check_room, written
from ensemblekit.cli.verbs import add
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from ensemblekit.store.store import Store

app = typer.Typer(no_args_is_help=True, help="Snapshots of neural networks: bring checkpoints in, plan cycles, write "
                                             "checkpoints out.")


def ingest(
    paths: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT... STORE", show_default=False,
                                                help="Checkpoints in their order, then the store to make.")],
    key: Annotated[str | None, typer.Option("--key", help="Of the weights where a checkpoint holds several, such as "
                                            "state_dict_ema.")] = None,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Checkpoints (.pt, .pth, .bin, .ckpt, .safetensors, HuggingFace folders) into a new store."""
    from ensemblekit import neural

    if len(paths) < 2:
        raise InputError("name one checkpoint or more, then the store to make: neural ingest ckpt/*.pt weights.h5")
    *checkpoints, store = paths
    if store.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".bin"):
        raise InputError(f"the last name is that of the store to make; {store} looks like a checkpoint")
    check_folder_of(store)
    check_room(store)
    print_store(neural.ingest(checkpoints, store, key=key), Output(as_json, inputs=tuple(map(str, checkpoints))))
    written(store)


def plan(
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data in all.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option("--steps-per-epoch", help="Batches an epoch.")] = None,
    total_steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps in all, instead of the two.")] = None,
    cycles: Annotated[int | None, typer.Option("--cycles", help="Check this number of cycles.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="A limit of time.")] = None,
    seconds_per_step: Annotated[float | None, typer.Option("--seconds-per-step", help="As measured.")] = None,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Batches an optimizer step.")] = 1,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Propose a number of cycles for a budget, and say what is doubtful about it."""
    from ensemblekit import neural

    planned = neural.plan(epochs, steps_per_epoch, total_steps=total_steps, n_cycles=cycles, seconds=seconds,
                          seconds_per_step=seconds_per_step, accumulate=accumulate)
    out = Output(as_json)
    first, *warnings = str(planned).splitlines()
    out.say(first)
    for line in warnings:
        out.say(line, "yellow")
    out.write(planned.to_dict())


def export(
    store: Annotated[Path, typer.Argument(metavar="STORE", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Ends in .pt, .pth or .safetensors.")],
    snapshot: Annotated[int, typer.Option("--snapshot", help="Its number; negative from the end.")] = -1,
    everything: Annotated[bool, typer.Option("--all", help="All snapshots, each with its number in the name.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write snapshots as state dicts that other programs read."""
    from ensemblekit import neural

    if everything:
        for path in sorted(out.parent.glob(f"{out.stem}*{out.suffix}")) if not overwrite else ():
            check_file(path, overwrite)
    for path in neural.export(store, out, None if everything else snapshot):
        written(path)


def print_store(store: Store, out: Output) -> None:
    """What came in: one row a snapshot."""
    rows = table("snapshot", "step", "content hash", right=("snapshot", "step"))
    times, hashes = store["parameters"].times, [row.tobytes().hex() for row in store["content_hash"][:]]
    assert times is not None
    for k, (at, digest) in enumerate(zip(times, hashes, strict=True)):
        rows.add_row(str(k), f"{at:g}", digest)
    out.show(rows)
    width = store["parameters"].shape[1]
    out.say(f"{len(times)} snapshots of {width:,} parameters")
    out.write({"store": store.path, "parameters": width,
               "snapshots": [{"step": at, "content_hash": digest} for at, digest in zip(times, hashes, strict=True)]})


add(app, neural_report.report, "ensemblekit neural report weights.h5 --json - | jq .results.scores",
    "ensemblekit neural report weights.h5 --model train:make_model --data train:test_loader --plot figures")
add(app, ingest, "ensemblekit neural ingest ckpt/*.pt weights.h5",
    "ensemblekit neural ingest run.ckpt weights.h5 --key state_dict_ema")
add(app, plan, "ensemblekit neural plan --epochs 200 --steps-per-epoch 391",
    "ensemblekit neural plan --steps 50000 --cycles 5 --json -")
add(app, export, "ensemblekit neural export weights.h5 -o last.pt",
    "ensemblekit neural export weights.h5 --all -o snapshot.safetensors")
add(app, neural_evidence.select, "ensemblekit neural select weights.h5",
    "ensemblekit neural select weights.h5 --method stacking --json - | jq .results.weights")
add(app, neural_evidence.equivalent, "ensemblekit neural equivalent weights.h5 --reference seed1.h5 seed2.h5 seed3.h5",
    "ensemblekit neural equivalent weights.h5 --reference seed1.h5 seed2.h5 seed3.h5 --score nll --plot figures")
add(app, neural_evidence.ergodicity, "ensemblekit neural ergodicity run1.h5 run2.h5 run3.h5",
    "ensemblekit neural ergodicity run1.h5 run2.h5 run3.h5 --last 4 --json -")
add(app, neural_evidence.detect, "ensemblekit neural detect weights.h5",
    "ensemblekit neural detect weights.h5 --groups patients.txt --json -")
add(app, neural_segment.segment, "ensemblekit neural segment weights.h5 --out report",
    "ensemblekit neural segment weights.h5 --model train:make_model --data train:test_loader --window 40,400 --json -")
add(app, neural_drift.drift, "ensemblekit neural drift weights.h5 --model train:make_model --data train:test_images",
    "ensemblekit neural drift weights.h5 --model train:make_model --data train:test_images --corruptions CIFAR-10-C --json -")
add(app, neural_trajectory.trajectory, "ensemblekit neural trajectory weights.h5 --plot figures",
    "ensemblekit neural trajectory weights.h5 --model train:make_model --data train:test_loader --rank 2 --json -")
