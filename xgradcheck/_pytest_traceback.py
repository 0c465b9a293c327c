"""What a failure shows, without what lies inside this library."""

import os
from pathlib import Path
from types import TracebackType

PACKAGE = __name__.partition(".")[0]
HERE = Path(__file__).parent
FOLDERS = tuple(str(folder) + os.sep for folder in (HERE, HERE.with_name("backends")))
EXPLAINED = "Explanation:"
"""With this and one more line hypothesis begins to list lines of code that only failing examples
ran.
"""


def leave_out_own(error: BaseException) -> None:
    """Take the frames of this library out of the traceback where the function under test raised,
    and its lines out of hypothesis's explanation.
    """
    for part in getattr(error, "exceptions", ()):
        leave_out_own(part)
    _leave_out_frames(error)
    _leave_out_lines(getattr(error, "__notes__", []))


def _leave_out_frames(error: BaseException) -> None:
    frames = list[TracebackType]()
    frame = error.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    # A traceback that ends here is a mistake of this library, and is needed to find it.
    if frames and not _is_own(frames[-1]):
        kept: TracebackType | None = None
        for frame in reversed(frames):
            if not _is_own(frame):
                frame.tb_next, kept = kept, frame
        error.__traceback__ = kept


def _is_own(frame: TracebackType) -> bool:
    return str(frame.tb_frame.f_globals.get("__name__", "")).startswith(f"{PACKAGE}.")


def _leave_out_lines(notes: list[str]) -> None:
    if EXPLAINED not in notes:
        return
    own = [note for note in notes if note.strip().startswith(FOLDERS)]
    if own:  # and most of those that "(and 12 more)" counts
        notes[:] = [n for n in notes if n not in own and not n.strip().startswith("(and ")]
        start = notes.index(EXPLAINED)
        if not any(note.startswith(" " * 8) for note in notes[start + 2 : start + 3]):
            del notes[start : start + 2]
