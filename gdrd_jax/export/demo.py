"""A page in the browser that compares two faces at 8, 16 and 32 pixels; everything stays on this computer."""

import base64
import dataclasses
import html
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gdrd_jax.data.degradation import resize
from gdrd_jax.data.task import FACES
from gdrd_jax.galleries import enroll
from gdrd_jax.galleries.address import Address
from gdrd_jax.galleries.checks import missing
from gdrd_jax.galleries.gallery import Gallery, Match, is_gallery
from gdrd_jax.inference import preprocess
from gdrd_jax.inference.embedders import Embedder, open_model
from gdrd_jax.inference.recognizer import FAR, Recognizer
from gdrd_jax.utils.errors import GdrdError, require
from gdrd_jax.utils.pictures import png
from gdrd_jax.utils.ports import listening, port_error

HOST = "127.0.0.1"
RESOLUTIONS = (8, 16, 32)
SEARCHES = 16  # resolution of the student that searches the gallery, if there is one
MATCHES = 5
FORGET = (600, 3600)  # seconds between two searches for old uploads, and seconds after which an upload is old
VERDICTS = {
    True: '<span class="same">the same person</span>',
    False: '<span class="other">not the same person</span>',
    None: "",
}
LOG = logging.getLogger(__name__)

STYLE = """
.faces img { width: 128px; height: 128px; max-width: none; display: block; margin: 0; border-radius: 4px }
.faces img.low { image-rendering: pixelated }
.faces table { border-collapse: collapse; width: 100% }
.faces th, .faces td { padding: .5rem .75rem; text-align: left }
.faces table, .faces tr, .faces th, .faces td { border: 0 solid var(--border-color-primary) !important }
.faces tr + tr { border-top-width: 1px !important }
.faces b { font-size: 1.4rem; font-variant-numeric: tabular-nums; display: block }
.faces small { opacity: .75; display: block; font-size: .85rem; max-width: 24rem }
.faces p small { max-width: none }
.faces .same { color: #1a9641 } .faces .other { color: #e0402f }
.faces h3 { margin: 1.5rem 0 .5rem } .faces .matches { display: flex; flex-wrap: wrap; gap: 1rem }
.faces figure { margin: 0; width: 128px } .faces figcaption { overflow-wrap: anywhere }
.faces .sentence { border-left: 4px solid #d7301f; padding: .5rem 1rem; font-size: 1.1rem }
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """Two faces at one size, and their similarities.

    Attributes:
      resolution: side in pixels; None for the faces in their own sizes.
      faces: the two faces, uint8 RGB `[resolution, resolution, 3]`, or `[S, S, 3]` of any two sizes.
      student: similarity by the student, -1 to 1; None if there is no student of that resolution.
      same: decision of the student; None if it has no threshold.
      remark: the threshold, or why there is none.
      teacher: similarity by the teacher, fed with the enlarged faces; None without a teacher.
    """

    resolution: int | None
    faces: tuple[np.ndarray, np.ndarray]
    student: float | None = None
    same: bool | None = None
    remark: str = ""
    teacher: float | None = None


@dataclasses.dataclass(frozen=True)
class Demo:
    """The models behind the page.

    Attributes:
      students: students by resolution, at least one.
      teacher: recognizer to compare the students with.
      gallery: known people, embedded by the student `searcher`.
      align: pictures are photographs of one person each.
      far: false accept rate of the students' decisions.
    """

    students: dict[int, Recognizer]
    teacher: Embedder | None = None
    gallery: Gallery | None = None
    align: bool = False
    far: float = FAR

    @classmethod
    def load(
        cls, models: Sequence[Path], teacher: str | None, gallery: Address | None, *, align: bool, far: float
    ) -> "Demo":
        """Loads the models and the gallery.

        Args:
          models: arguments of `Recognizer.load`, at least one, of different resolutions.
          teacher: `PATH[:PREPROCESSING[:SIZE]]`, see `inference.embedders.open_model`.
          gallery: a folder PERSON/IMAGE, which is enrolled in memory, or a saved gallery.
          align, far: see above.

        Raises:
          GdrdError: one cannot be loaded, two students have the same resolution, or the gallery is another student's.
        """
        students: dict[int, Recognizer] = {}
        for path in models:
            recognizer = Recognizer.load(path)
            if recognizer.task != FACES:
                raise GdrdError(f"{path} is not a student of RGB faces, which the demo is for", "task-demo")
            if recognizer.resolution in students:
                raise GdrdError(
                    f"--model {path}: there is another student of {recognizer.resolution} pixels; give only one",
                    "resolution-twice",
                )
            students[recognizer.resolution] = recognizer
        demo = cls(students, _teacher(teacher) if teacher else None, None, align, far)
        return dataclasses.replace(demo, gallery=_gallery(demo.searcher, gallery, align)) if gallery else demo

    @property
    def searcher(self) -> Recognizer:
        """The student that searches the gallery."""
        return self.students.get(SEARCHES) or self.students[max(self.students)]

    def face(self, path: str | os.PathLike | None, which: str) -> np.ndarray:
        """The face of a picture, uint8 RGB `[S, S, 3]`.

        Args:
          path: its file, if there is one.
          which: its name in errors.

        Raises:
          GdrdError: the picture cannot be read, has no face or several faces, is not square, or is too small.
        """
        if path is None:
            raise GdrdError(f"{which} is missing; add one", "picture-missing")
        try:
            face = self.searcher.face(path, align=self.align)
        except GdrdError as error:
            raise GdrdError(str(error).replace(os.fspath(path), which), error.code) from error
        side, largest = len(face), max(self.students)
        if side < preprocess.LEAST * largest:
            raise preprocess.too_small(which, side, largest)
        return face

    def compare(self, first: np.ndarray, second: np.ndarray) -> list[Row]:
        """A row for each resolution, and with a teacher one for the faces in their own sizes; faces as from `face`."""
        rows = [self._row(resolution, (first, second)) for resolution in sorted({*RESOLUTIONS, *self.students})]
        if self.teacher is None:
            return rows
        return [*rows, Row(None, (first, second), teacher=self._taught((first, second), self.teacher.kernel))]

    def _row(self, resolution: int, faces: tuple[np.ndarray, np.ndarray]) -> Row:
        student = self.students.get(resolution)
        kernel = (student or self.searcher).kernel
        low = tuple(resize(face, resolution, kernel) for face in faces)
        taught = self._taught(low, kernel) if self.teacher else None
        if student is None:
            return Row(resolution, low, teacher=taught)
        similarity = _similarity(student.embed, low)
        return Row(resolution, low, similarity, *self._decide(student, similarity), taught)

    def _taught(self, faces: tuple[np.ndarray, np.ndarray], kernel: str) -> float:
        return _similarity(self.teacher.embed, [resize(face, self.teacher.input_size, kernel) for face in faces])

    def _decide(self, student: Recognizer, similarity: float) -> tuple[bool | None, str]:
        try:
            threshold = student.threshold(self.far)
        except GdrdError as error:
            return None, f"no decision: {error}"
        return similarity >= threshold, f"threshold {threshold:.3f}"

    def matches(self, face: np.ndarray) -> list[tuple[np.ndarray | None, Match]]:
        """The faces of the gallery that are most similar to `face`: uint8 RGB, None if the file is gone."""
        found = self.gallery.search(self.searcher.embed(face), MATCHES)[0]
        return [(enroll.enrolled(self.searcher, match), match) for match in found]


def _similarity(embed: Callable[[np.ndarray], np.ndarray], faces: Sequence[np.ndarray]) -> float:
    first, second = embed(np.stack(faces))
    return float(first @ second)


def _teacher(text: str) -> Embedder:
    model = open_model(text, option="--teacher")
    if model.is_student:
        raise GdrdError(f"--teacher {text}: this is a student; give it as --model", "teacher-is-student")
    return model


def _gallery(recognizer: Recognizer, path: Address, align: bool) -> Gallery:
    if is_gallery(path):
        return Gallery.load(path, recognizer.fingerprint())
    if not isinstance(path, Path):
        raise missing(path)
    gallery = Gallery(recognizer.dim, recognizer.fingerprint())
    found = enroll.add_people(gallery, recognizer, path, align=align)
    if found.bad:
        LOG.warning("left out %d pictures of %s; the first: %s", len(found.bad), path, found.bad[0][1])
    return gallery


def answer(demo: Demo, first: str | None, second: str | None) -> str:
    """The page's HTML for two files; a sentence if one of them cannot be used."""
    try:
        faces = demo.face(first, "the first picture"), demo.face(second, "the second picture")
        rows, matches = demo.compare(*faces), demo.matches(faces[0]) if demo.gallery else []
    except GdrdError as error:
        text = str(error)
        return f'<div class="faces"><p class="sentence">{html.escape(text[0].upper() + text[1:])}.</p></div>'
    return f'<div class="faces">{_table(demo, rows)}{_found(demo, matches) if matches else ""}</div>'


def _table(demo: Demo, rows: list[Row]) -> str:
    titles = ["pixels", "first", "second", "student", *([demo.teacher.name] if demo.teacher else [])]
    lines = ["<tr>" + "".join(f"<th>{html.escape(title)}</th>" for title in titles) + "</tr>"]
    for row in rows:
        cells = [f"{row.resolution}x{row.resolution}" if row.resolution else "as they are", *map(_image, row.faces)]
        cells += [_student(row), *([f"<b>{row.teacher:.3f}</b>"] if demo.teacher else [])]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(lines)}</table><p><small>{_legend(demo)}</small></p>"


def _student(row: Row) -> str:
    if row.student is None:
        return "<small>none of this size</small>" if row.resolution else ""
    return f"<b>{row.student:.3f}</b>{VERDICTS[row.same]}<small>{html.escape(row.remark)}</small>"


def _legend(demo: Demo) -> str:
    text = (
        "Similarities are cosines of embeddings, -1 to 1. At its threshold, a student falsely accepts at most a share "
        f"of {demo.far:g} of the pairs of different people that the threshold was learned on."
    )
    if demo.teacher:
        text += (
            f" {demo.teacher.name} gets the reduced faces enlarged again (bicubic). It has no threshold here, and its "
            "similarities have another scale than a student's."
        )
    return html.escape(text)


def _found(demo: Demo, matches: list[tuple[np.ndarray | None, Match]]) -> str:
    figures = [
        f"<figure>{'<small>its file is gone</small>' if face is None else _image(face)}"
        f"<figcaption>{html.escape(match.id)}<b>{match.similarity:.3f}</b></figcaption></figure>"
        for face, match in matches
    ]
    title = f"Most similar to the first face at {demo.searcher.resolution} pixels, of {len(demo.gallery)} faces"
    return f'<h3>{title}</h3><div class="matches">{"".join(figures)}</div>'


def _image(face: np.ndarray) -> str:
    low = ' class="low"' if len(face) <= max(RESOLUTIONS) else ""
    return f'<img{low} alt="" src="data:image/png;base64,{base64.b64encode(png(face)).decode()}">'


def check_server(port: int) -> None:
    """Checks, before galleries are read, that `serve` can work.

    Raises:
      GdrdError: the port is in use, or gradio is not installed.
    """
    listening(HOST, port).close()
    require("gradio", "demo")  # which takes seconds to import


def serve(demo: Demo, port: int):
    """Serves the page at http://127.0.0.1:PORT, to this computer alone, in a thread.

    Returns:
      The running `gradio.Blocks`; `block_thread()` waits for Ctrl-C, `close()` stops it.

    Raises:
      GdrdError: gradio is not installed, or the port is in use.
    """
    # Without these, Gradio sends usage data to its makers and keeps faces in the browser.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    gradio = require("gradio", "demo")
    with gradio.Blocks(title="gdrd_jax", delete_cache=FORGET) as page:
        kind = "photographs of one person each" if demo.align else "aligned, square faces"
        gradio.Markdown(f"# Two faces at 8, 16 and 32 pixels\nAdd two pictures: {kind}.")
        with gradio.Row():
            pictures = [gradio.Image(label=label, type="filepath", height=220) for label in ("First", "Second")]
        button = gradio.Button("Compare", variant="primary")
        result = gradio.HTML(padding=False)
        button.click(lambda first, second: answer(demo, first, second), pictures, result)
    for picture in pictures:
        # Gradio's own function decodes the file, and reports a bad one only as "Error".
        picture.preprocess = lambda payload: payload and payload.path
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # others would be downloaded
    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, ssr_mode=False, quiet=True, inbrowser=False,
            prevent_thread_lock=True, footer_links=[], css=STYLE, theme=gradio.themes.Default(**fonts),
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise port_error(HOST, port) from error
    return page
