"""The commands, and what becomes of their errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from .. import __version__
from . import edit, evaluate, generate, reproduce, show
from . import train as training
from .options import with_settings
from .process import INTERRUPTED, STOPPED


class _Commands(TyperGroup):
    """Commands whose errors are one paragraph, unless `--debug` asks for the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(STOPPED, err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            own = hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError))  # Typer's affair
            if own or ctx.params.get("debug"):
                raise
            typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_explain(error)}", err=True)
            raise typer.Exit(1) from None


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {str(error.filename)!r}" if error.filename else "")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        said = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"not enough memory; a smaller --height and --width or --dtype float16 need less{said}"
    if isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)) and str(error).strip():
        return str(error).strip()
    return f"{type(error).__name__}: {error} (this looks like a fault of Calotype; --debug shows where)"


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[bool, Option("--version", is_eager=True, callback=_show_version, help="Show the version.")] = False,
    debug: Annotated[bool, Option("--debug", envvar="CALOTYPE_DEBUG", help="Show tracebacks of errors.")] = False,
) -> None:
    """Pictures by diffusion models. Each command has its own --help."""


for command in (generate.generate, edit.edit, edit.inpaint, edit.depth, generate.sample, reproduce.reproduce,
                evaluate.evaluate, show.info, show.schedulers):
    app.command()(with_settings(command))
app.add_typer(training.recipes, name="train")
