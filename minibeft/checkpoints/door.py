"""The one door for files that others may have written: regular, of a bounded size, and inside their own folder."""

from pathlib import Path

from minibeft.errors import BadInput

MOST_BYTES = 64 << 20  # of a configuration, a vocabulary, an index, sentences
POINTER = b"version https://git-lfs.github.com/spec/"


def checked(file: Path, most: int | None = MOST_BYTES, *, links: bool = False) -> Path:
    """The file, which may now be read; BadInput says why it may not.

    most   bytes; None: as many as there are, for weights, which are mapped and held against config.json
    links  whether it may be a link that leads elsewhere, because the user named the file itself and not its folder
    """
    if not file.is_file():
        raise BadInput(f"{file}: is {'no regular file' if file.exists() else 'missing'}; put the file itself there")
    if not links and not stays_inside(file, file.parent):
        raise BadInput(f"{file}: is a link that leads out of its folder; put the file itself there")
    size = file.stat().st_size
    if most is not None and size > most:
        raise BadInput(f"{file}: has {size:,} bytes, more than the {most:,} that such a file may have")
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(POINTER)) == POINTER
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); look at its rights") from error
    if pointer:
        raise BadInput(f"{file}: is a git-lfs pointer, not the file itself; run git lfs pull in its repository")
    return file


def stays_inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in the folder after links are followed.

    In a snapshot of the hub's cache the files are links to the blobs beside the repository's snapshots; these blobs
    count as inside.
    """
    real, home = file.resolve(), folder.resolve()
    snapshots = (part.parent for part in (home, *home.parents) if part.parent.name == "snapshots")
    return real.is_relative_to(home) or any(real.parent == part.parent / "blobs" for part in snapshots)
