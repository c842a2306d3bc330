"""Search for templates (1:N): which subject of a gallery is it, if any? See `evaluation.templates`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from gdrd_jax.data.faces import Faces
from gdrd_jax.evaluation import bootstrap, identification, retrieval
from gdrd_jax.evaluation.interface import Figure, ReportedProtocol
from gdrd_jax.evaluation.report import draw_lines
from gdrd_jax.evaluation.result import Metric, Result, percent, percents
from gdrd_jax.evaluation.template_files import read_template_names, read_templates
from gdrd_jax.evaluation.templates import Templates, require_lists
from gdrd_jax.registry import protocols
from gdrd_jax.utils.errors import GdrdError
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.texts import counted

RANKS, LONGEST = (1, 5, 10), 50


@dataclasses.dataclass(frozen=True)
class TemplateSearch(ReportedProtocol):
    """Probes are searched for in a gallery, which may lack some of their subjects.

    Attributes:
      faces: all faces.
      templates: T templates made from these faces.
      gallery, probes: template numbers, int32 `[G]` and `[P]`, below T.
      about: see `ReportedProtocol`.
    """

    faces: Faces
    templates: Templates
    gallery: np.ndarray
    probes: np.ndarray
    about: dict[str, Any]

    title, files = "Template search", ("cmc.png",)
    main = "rank_1"
    columns = {
        **{f"rank_{k}": f"rank-{k} %" for k in RANKS},
        **{f"tpir_at_fpir.{fpir:g}": f"TPIR % at FPIR {fpir:g}" for fpir in identification.FPIRS},
    }
    legend = (
        "Rank-k: share of probes whose subject is in the gallery that have a template of this subject among the k most "
        "similar ones; a stranger as similar as a mate comes first. TPIR at FPIR: share of these probes whose most "
        "similar template is of their subject and accepted, where at most so many of the probes whose subject is not "
        "in the gallery have any accepted template."
    )

    def evaluate(self, embeddings: np.ndarray, gallery: np.ndarray | None = None, *, seed: int) -> Result:
        """Scores one recognizer by the cosine of templates; `gallery` has the embeddings of enrolled faces."""
        pool, subjects = self.templates.pool(embeddings), self.templates.subjects
        probes, ids = pool[self.probes], subjects[self.probes]
        enrolled = (pool if gallery is None else self.templates.pool(gallery))[self.gallery]
        mated = np.isin(ids, subjects[self.gallery])
        ranks = retrieval.mate_ranks(probes[mated], ids[mated], enrolled, subjects[self.gallery])
        searches = identification.search(probes, ids, enrolled, subjects[self.gallery])
        shares = {f"rank_{k}": retrieval.rank_k(ranks, k) for k in RANKS}
        metrics: dict[str, Metric] = {name: percent(values.mean()) for name, values in shares.items()}
        metrics["tpir_at_fpir"], spread = identification.tpir_figures(searches, ids, seed=seed)
        metrics |= {"n_gallery": len(self.gallery), "n_probes": len(probes), "n_mated": int(mated.sum())}
        intervals = {
            name: percents(bootstrap.of_mean(values, ids[mated], seed=seed)) for name, values in shares.items()
        }
        first = np.array([rank[0] for rank in ranks])
        arrays = {"rank_of_first_mate": first, "best": searches.best, "cmc": retrieval.cmc(ranks, LONGEST)}
        return Result(metrics, intervals | spread, arrays)

    def shared_arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays that are the same for every row: gallery, probes and names of the templates."""
        return {"gallery": self.gallery, "probes": self.probes, "templates": np.array(self.templates.names)}

    def figures(self, results: Mapping[str, Result]) -> list[Figure]:
        """The CMC curves."""
        lines = {name: (np.arange(1, LONGEST + 1), 100 * result.arrays["cmc"]) for name, result in results.items()}
        png = draw_lines(lines, x="rank", y="probes with a mate by that rank, %")
        return [
            Figure("cmc.png", png, "Cumulative match characteristic of the probes whose subject is in the gallery.")
        ]

    @classmethod
    def of(cls, templates: Templates, gallery: np.ndarray, probes: np.ndarray) -> Self:
        """Makes the protocol from template numbers, int32 `[G]` and `[P]`; missing templates (-1) are left out.

        Raises:
          GdrdError: no probe has its subject in the gallery.
        """
        left_out = int((gallery < 0).sum() + (probes < 0).sum())
        gallery, probes = gallery[gallery >= 0], probes[probes >= 0]
        if not np.isin(templates.subjects[probes], templates.subjects[gallery]).any():
            raise GdrdError("no probe is of a subject of the gallery; check both lists", "template-no-mates")
        about = {**templates.about, "drawn": "subjects"}
        if left_out:
            about["remark"] = f"{counted(left_out, 'template')} of the gallery and of the probes left out"
        return cls(templates.faces, templates, gallery, probes, about)


@protocols.register("template_search")
class ListedSearch(TemplateSearch):
    """Images anywhere, with --templates as the protocol templates, --gallery and --probes (TEMPLATE): 1:N."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Settings; see `evaluation.template_files` for the lists.

        Attributes:
          templates: file with a line for each image of a template.
          gallery: file with a line for each template of the gallery.
          probes: file with a line for each template that is searched for.
        """

        templates: str = ""
        gallery: str = ""
        probes: str = ""

    @classmethod
    def open(cls, data: Path, config: Config, *, stretch: bool = False, skip_bad: bool = False) -> Self:
        """See `ReportedProtocol.open`."""
        require_lists(config, "templates", "gallery", "probes")
        listed = read_templates(user_path(config.templates))
        gallery, probes = (
            read_template_names(user_path(file), listed.names) for file in (config.gallery, config.probes)
        )
        templates = Templates.open(data, listed, stretch=stretch, skip_bad=skip_bad)
        return cls.of(templates, *(templates.numbered(chosen, listed.names) for chosen in (gallery, probes)))
