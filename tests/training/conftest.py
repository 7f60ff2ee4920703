"""Pictures and a tiny pipeline to train, made once, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .made_pictures import make_pictures, save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text-to-image pipeline of random weights. Nothing may be written there."""
    return save_tiny(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with captions. Nothing may be written there."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "shapes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    from .running import trainer  # which needs what training needs

    folder = tmp_path_factory.mktemp("whole")
    trainer(folder).run()
    return folder
