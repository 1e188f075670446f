"""``nplora convert``."""

from __future__ import annotations

import click

from ..parameters import BASE, COMPONENTS, DORA, DTYPE, ENERGY, ERROR, FORMAT, OVERRIDES, RANK
from .fuse import compressed, left_out, require_free
from .options import take, with_parameters
from .text import count, facts, paragraph, say, size, write_json

PARAMETERS = (FORMAT, DTYPE, COMPONENTS, BASE, DORA, RANK, ENERGY, ERROR, OVERRIDES)


@click.command(short_help="Write an adapter in another format or number type.")
@click.argument("adapter")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write (a folder with --format peft).")
@with_parameters(PARAMETERS)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists already.")
@click.option("--report", metavar="FILE.json", help="Write there what became of every key.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing where all is well.")
def command(adapter: str, output: str, overwrite: bool, report: str | None, quiet: bool, **values: str | None) -> None:
    """Write ADAPTER (a file or a PEFT folder) in another format or number type.

    Every module adds the same to its weight as before; only names, scales and the number type change. With --base,
    kinds that depend on the base model (DoRA, OFT, ...) become what they add to it; --rank, --energy and --error
    compress every module to the nearest one of fewer ranks and print the exact error; --override rank@up=8 does so in a
    part of the model.
    """
    from .. import convert, load
    from ..storage import TensorFile

    if report is not None:
        require_free(report, (adapter, output), overwrite)
    loaded = load(adapter)
    done = convert(loaded, output, overwrite=overwrite, **take(dict(values), PARAMETERS))
    if report is not None:
        write_json(report, done)
    if quiet:
        return
    written, modules = TensorFile(done["output"]), count(done["modules"]["passed_through"]["subject"], "module")
    say(
        paragraph(f"{modules} from {loaded.format.name} to {done['format']}."),
        facts([("written", f"{done['output']}: {size(written.size)}"), *compressed(done), *left_out(done, report),
               *(("note", note) for note in done["notes"])]),
    )  # fmt: skip
