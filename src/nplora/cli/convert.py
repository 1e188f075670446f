"""``nplora convert``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ..errors import UsageError
from ..parameters import BASE, COMPONENTS, DORA, DTYPE, ENERGY, ERROR, FORMAT, OVERRIDES, RANK
from .command import FILE, Command
from .fuse import compressed, left_out
from .options import take, with_parameters
from .progress import Progress
from .targets import after_writing, name_without_suffix, require_free
from .text import as_json, count, facts, paragraph, say, size, write_json

PARAMETERS = (FORMAT, DTYPE, COMPONENTS, BASE, DORA, RANK, ENERGY, ERROR, OVERRIDES)

EXAMPLES = (
    "convert cat.safetensors --format kohya -o cat-kohya.safetensors",
    "convert cat.safetensors --format peft -o cat",
    "convert cat.safetensors --rank 8 --dtype fp16 -o small.safetensors",
)


@click.command(cls=Command, examples=EXAMPLES, short_help="Write an adapter in another format or number type.")
@click.argument("adapters", type=FILE, nargs=-1, required=True, metavar="ADAPTER")
@click.option(
    "-o", "--output", type=FILE, metavar="FILE",
    help="The file to write (a folder with --format peft).  [default: ADAPTER-FORMAT.safetensors]",
)  # fmt: skip
@with_parameters(PARAMETERS)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists already.")
@click.option("--report", type=FILE, metavar="FILE.json", help="Write there what became of every key.")
@click.option("--json", "json_", is_flag=True, help="Print what became of every key as JSON instead of sentences.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(
    adapters: tuple[str, ...], output: str | None, overwrite: bool, report: str | None, json_: bool, quiet: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Write ADAPTER (a file or a PEFT folder) in another format or number type.

    Every module adds the same to its weight as before; only names, scales and the number type change. With --base,
    kinds that depend on the base model (DoRA, OFT, ...) become what they add to it; --rank, --energy and --error
    compress every module to the nearest one of fewer ranks and print the exact error; --override rank@up=8 does so in a
    part of the model.
    """
    if len(adapters) > 1:
        raise UsageError(
            "one adapter is converted at a time", got=str(len(adapters)), hint="nplora fuse puts several into one."
        )
    from .. import convert, load
    from ..storage import TensorFile

    (adapter,), asked = adapters, take(dict(values), PARAMETERS)
    output = output or converted_name(adapter, asked)
    if report is not None:
        require_free(report, (adapter, output), overwrite)
    loaded = load(adapter)
    with Progress("converting", quiet=quiet) as progress:
        done = convert(loaded, output, overwrite=overwrite, progress=progress, **asked)
    if report is not None:
        with after_writing(output):
            write_json(report, done)
    if json_:
        click.echo(as_json(done))
    if quiet or json_:
        return
    written, modules = TensorFile(done["output"]), count(done["modules"]["passed_through"]["subject"], "module")
    say(
        paragraph(f"{modules} from {loaded.format.name} to {done['format']}."),
        facts([("written", f"{done['output']}: {size(written.size)}"), *compressed(done), *left_out(done, report),
               *(("note", note) for note in done["notes"])]),
    )  # fmt: skip


def converted_name(adapter: str, asked: Mapping[str, Any]) -> str:
    """A name for the result in the current folder: the adapter's, and what is asked for.

    Raises:
        UsageError: nothing that a name could say is asked for.

    >>> converted_name("loras/cat.safetensors", {"format": "kohya", "dtype": "fp16", "rank": 8})
    'cat-kohya-fp16-rank8.safetensors'
    """
    words = [str(asked[name]) for name in ("format", "dtype") if asked.get(name, "same") not in ("same", "auto")]
    words += [",".join(asked["components"])] if asked.get("components") else []
    words += [f"{name}{asked[name]}" for name in ("rank", "energy", "error") if name in asked]
    if not words:
        raise UsageError(
            "no output is named", hint=f"For example: nplora convert {adapter} --format kohya -o FILE.safetensors."
        )
    return "-".join((name_without_suffix(adapter), *words)) + ("" if asked.get("format") == "peft" else ".safetensors")
