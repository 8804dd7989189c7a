"""Output files: one by name, or generated names in a folder."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from undust.cli import console
from undust.errors import UndustError
from undust.formats.files import check_new_folder, make_folder
from undust.formats.run_folder import GENERATED

if TYPE_CHECKING:
    from PIL import Image

    from undust.generation.loop import Picture
    from undust.recipe.recipe import Recipe

FOLDER = Path(GENERATED)
STREAM = Path("-")
SLUG = 40  # characters of the prompt in a file's name


@dataclass(frozen=True)
class Output:
    """A folder, and the file in it if one was named."""

    folder: Path
    file: str | None = None

    @classmethod
    def choose(cls, out: Path | None, pictures: int) -> Output:
        """The output for `--out`, after a test that files can be written there.

        Raises UndustError for a file name that does not fit the pictures and for a folder that
        cannot be written to.
        """
        from undust.formats.recipe_png import WRITTEN, check_name

        out = out or FOLDER
        suffix = "" if out.is_dir() else out.suffix.lower()
        if suffix:
            check_name(out)
        if suffix in WRITTEN and pictures > 1:
            raise UndustError(
                f"--out {out}: {pictures} pictures do not fit into one file; give a folder, "
                f"such as {out.with_suffix('')}"
            )
        if suffix not in WRITTEN:
            try_writing(out)
            return cls(out)
        try_writing_file(out)
        return cls(out.parent, out.name)

    def check(self, recipe: Recipe) -> None:
        """Before the work: raises UndustError if the recipe does not fit into the named file."""
        if self.file:
            from undust.formats.recipe_png import texts_for

            texts_for(self.folder / self.file, recipe.final_size, recipe.model_dump())

    def note_replaced(self, note: Callable[[str], None]) -> None:
        """Notes that the named file will be replaced, if there is one."""
        if self.file:
            note_replaced(self.folder / self.file, note)

    def save(self, picture: Picture) -> Path:
        """Writes a picture; in a folder it never replaces a file."""
        recipe = picture.recipe
        return picture.save(self._place(f"{slug(recipe.prompt)}-{recipe.seed}"))

    def save_sheet(self, sheet: Image.Image) -> Path:
        """Writes the contact sheet of the pictures."""
        from undust.formats.files import atomic

        path = self._place("contact-sheet")
        with atomic(path) as temporary:
            sheet.save(temporary, "PNG")
        return path

    def _place(self, stem: str) -> Path:
        make_folder(self.folder)
        if self.file:
            return self.folder / self.file
        return free_place(self.folder, stem, ".png")


def free_place(folder: Path, stem: str, suffix: str = "") -> Path:
    """A name in a folder that nothing has yet: stem, or stem-2 and so on, with the suffix."""
    path, count = folder / f"{stem}{suffix}", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}{suffix}"
    return path


def slug(prompt: str) -> str:
    """The prompt's letters and digits, of any language, as a file's name: "a-smiling-cat"."""
    letters = (
        c if unicodedata.category(c)[0] in "LMN" else " "
        for c in unicodedata.normalize("NFC", prompt)
    )
    words = "-".join("".join(letters).split())
    if len(words) > SLUG:
        words = words[: SLUG + 1].rpartition("-")[0] or words[:SLUG]
    return words or "picture"


def try_writing_file(path: Path) -> None:
    """As `try_writing`, for a file or the target of a link."""
    _refuse_stream(path)
    try_writing(path.parent)
    if path.is_symlink():
        # For circular links the real path is a link.
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir() or target.is_symlink():
            raise UndustError(
                f"cannot write {path}: it is a link to {target}, which does not exist"
            )
        try_writing(target.parent)
    if path.exists() and not path.is_file():
        raise UndustError(f"cannot write {path}: it exists and is not a file")


def note_replaced(path: Path, note: Callable[[str], None] = console.note) -> None:
    """Notes that a file will be replaced, when nothing is left that could be wrong before it."""
    if path.is_file():
        note(f"{path} exists and will be replaced")


def check_out_folder(out: Path | None) -> None:
    """Raises UndustError unless a new folder can be written: `out`, or one in `FOLDER`."""
    try_writing(out or FOLDER)
    if out is not None:
        check_new_folder(out)


def try_writing(folder: Path) -> None:
    """Writes and removes a small file in the folder or its first existing parent.

    Raises UndustError if that fails, before the work is done.
    """
    _refuse_stream(folder)
    there = folder.absolute()
    try:
        while not there.exists():
            if there.is_symlink():
                target = os.path.realpath(there)
                raise UndustError(
                    f"cannot write to {folder}: {there} is a link to {target}, which does not exist"
                )
            there = there.parent
        if not there.is_dir():
            raise UndustError(f"cannot write to {folder}: {there} is a file")
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise UndustError(f"cannot write to {folder}: {error.strerror}") from error


def _refuse_stream(path: Path) -> None:
    """Raises UndustError for "-", which means standard output elsewhere."""
    if path == STREAM:
        raise UndustError(
            f"cannot write to {path}: results are files, and none is written to standard output; "
            "give the name of a file or a folder"
        )
