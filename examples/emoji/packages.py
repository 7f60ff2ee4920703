"""The packages that the pictures and their words come from: fetched with npm, checked, read in place."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.files import staged_folder


@dataclass(frozen=True)
class Package:
    """One version of an npm package. `integrity` is its SHA-512 as npm's registry states it."""

    name: str
    version: str
    licence: str
    integrity: str

    @property
    def file_name(self) -> str:
        """What `npm pack` calls it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


STYLES = {
    "noto": Package(
        "@iconify-json/noto", "1.2.9", "Apache-2.0",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    "fluent": Package(
        "@iconify-json/fluent-emoji", "1.2.7", "MIT",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA=="),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    "twemoji": Package(
        "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
}
"""Where the pictures of each style come from. The words are those of the bundled checkpoint's captions."""

WORDS = Package(
    "emojibase-data", "17.0.0", "MIT",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==")
"""Where labels, tags and groups come from."""


def archive_of(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`: the one already there, else fetched with npm from the registry it is set up for.

    Raises:
        RuntimeError: npm is missing, or it failed.
        ValueError: the archive is not, byte for byte, the pinned one.
    """
    path = folder / package.file_name
    if not path.is_file():
        _fetch(package, folder)
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise ValueError(f"{str(path)!r} is not {package.name} {package.version}: its checksum is {found}, and should be "
                         f"{package.integrity}. Remove it to have it fetched again")
    return path


def _fetch(package: Package, folder: Path) -> None:
    wanted = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"{wanted} is not in {str(folder)!r}, and npm, which fetches it, is not installed. Install it, or "
                           f"run `npm pack {wanted}` elsewhere and give the folder with {package.file_name!r} as --packages")
    with staged_folder(folder) as scratch:
        done = subprocess.run([npm, "pack", "--ignore-scripts", "--pack-destination", str(scratch), wanted],
                              capture_output=True, text=True, check=False)
        if done.returncode or not (scratch / package.file_name).is_file():
            raise RuntimeError(f"npm could not fetch {wanted}:\n{done.stderr.strip()}")


def read_member(archive: Path, name: str) -> Any:
    """The JSON of one file of an npm archive. Nothing is unpacked."""
    with tarfile.open(archive, "r:gz") as members:
        try:
            member = members.extractfile(f"package/{name}")
        except KeyError:
            member = None
        if member is None:
            raise ValueError(f"{str(archive)!r} has no file {name!r}")
        return json.loads(member.read())
