"""`calotype train RECIPE`: each recipe's settings as options, on top of a YAML file."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup

from .process import work_begins

_WORDS = {
    "unconditional": "Pictures out of nothing, like those given.",
    "text-to-image": "A text-to-image model, on pictures with captions.",
    "lora": "A small adapter of a text-to-image model: a style, a way to draw.",
    "dreambooth": "One subject, from a few pictures, under a rare word.",
    "textual-inversion": "A new word for what pictures show; nothing else changes.",
    "autoencoder": "An autoencoder, or its decoder alone, which leaves all latents as they are.",
}


class Recipes(TyperGroup):
    """The recipes as commands, each made when it is asked for, since their settings come with torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_WORDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _WORDS:
            return None
        if ctx.resilient_parsing:  # a shell is completing what is typed, and waits for no torch
            return TyperCommand(cmd_name, help=_WORDS[cmd_name], context_settings={
                "ignore_unknown_options": True, "allow_extra_args": True})
        try:
            import accelerate  # noqa: F401
            import pydantic  # noqa: F401
            import yaml  # noqa: F401
        except ImportError as error:
            raise ImportError(f"training needs {error.name}, which is not installed: `pip install calotype[train]`") from None
        app = typer.Typer(add_completion=False)
        app.command(cmd_name, help=_WORDS[cmd_name])(_command(cmd_name))
        return typer.main.get_command(app)


recipes = typer.Typer(
    cls=Recipes, no_args_is_help=True,
    help="Train or fine-tune a model: `calotype train RECIPE --help` shows what each recipe takes.",
    # What people type by habit: options in the spelling of Diffusers' scripts.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})


def _command(name: str) -> Callable[..., None]:
    """The command of a recipe, whose options are its settings."""
    from ..training.recipes import recipe

    settings = recipe(name).Settings

    def run(config: Path | None, dry_run: bool, **given: Any) -> None:
        told = {key: value for key, value in given.items() if value is not None and value != []}
        _train(recipe(name), settings.read(told, config), dry_run)

    shown = [
        _parameter("config", Annotated[Path | None, Option(help="A YAML file of settings; options come on top of it.")], None),
        _parameter("dry_run", Annotated[bool, Option("--dry-run", help=(
            "Check data and settings, and estimate memory and time; train nothing."))], False)]
    for key, field in settings.model_fields.items():
        default = "needed" if field.is_required() else _shown(field.default)
        option = Option(help=field.description, show_default=default, rich_help_panel=_panel(settings, key))
        shown.append(_parameter(key, Annotated[_optional(field.annotation), option], None))
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _panel(settings: Any, key: str) -> str:
    """The heading of an option: the first words of the class that declares its setting."""
    owner = next(kind for kind in settings.__mro__ if key in vars(kind).get("__annotations__", {}))
    return str(owner.__doc__).split("\n")[0].rstrip(".") if owner is not settings else "The recipe"


def _optional(annotation: Any) -> Any:
    """The type of an option that may be left out: lists of choices are lists of texts, which the settings check."""
    kinds = [kind for kind in _members(annotation) if kind is not type(None)]
    kind = kinds[0]
    if get_origin(kind) is dict:  # name=value, as often as need be
        kind = list[str]
    elif get_origin(kind) is list:
        inner: Any = get_args(kind)[0]
        kind = types.GenericAlias(list, (str if get_origin(inner) is Literal else inner,))
    return (str if get_origin(kind) is Literal else kind) | None


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        yield from get_args(annotation)
    else:
        yield annotation


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default in (None, [], {}) else str(default)


def _train(task: Any, settings: Any, dry_run: bool) -> None:
    if dry_run:
        from ..training.estimate import estimate

        for name, value in estimate(task(settings), settings):
            typer.echo(f"{name:>18}  {value}")
        return
    from ..training.trainer import Trainer

    def say(text: str) -> None:
        typer.echo(text, err=True)  # which flushes

    work_begins()
    trainer = Trainer(task(settings), settings, say)
    trained = trainer.run()
    losses = list(trained.losses.values())
    tenth = max(1, len(losses) // 10)
    if losses:
        first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
        trainer.say(f"{trained.steps} steps; loss {first:.4f} in the first tenth of them, {last:.4f} in the last")
