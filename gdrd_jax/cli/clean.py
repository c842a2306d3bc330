"""List the output of steps that no workdir uses any more, and remove it with --yes.

Every change of a setting leaves the output of the earlier setting in WORKDIR/steps or in the folder of
--config.outputs, so that it can be changed back at no cost. FOLDER is a workdir, for what is in WORKDIR/steps, or a
folder that workdirs share by --config.outputs. Unused is what no link WORKDIR/STEP leads to, in any workdir that has
used the folder. Trained networks are listed, too, but removed only where --trained names them. Arrays in a bucket of
--config.data.cache are never removed.

Examples:
  gdrd clean runs/mine
  gdrd clean runs/mine --yes
  gdrd clean runs/mine --yes --trained dis-0123456789ab
  gdrd clean runs/ablation/steps --yes
"""

from gdrd_jax.cli.common import ArgumentParser, guarded
from gdrd_jax.utils.files import user_path
from gdrd_jax.utils.tables import size_text


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""

    def work() -> None:
        parser = ArgumentParser(__doc__)
        help = "workdir of gdrd train, or a folder of --config.outputs"
        parser.add_argument("folder", type=user_path, metavar="FOLDER", help=help)
        either = parser.add_mutually_exclusive_group()
        either.add_argument("--yes", action="store_true", help="remove what is listed")
        either.add_argument("--dry-run", action="store_true", help="only list it, the default")
        parser.add_argument(
            "--trained", nargs="+", default=[], metavar="NAME", help="remove these trained networks, too"
        )
        given = parser.parse_args(argv)
        from gdrd_jax.pipeline import cleaning

        with cleaning.find_unused(given.folder) as unused:
            chosen = cleaning.choose(unused, given.trained)
            for output in unused:
                kept = "" if output in chosen else f"  trained; kept without --trained {output.folder.name}"
                print(f"{size_text(output.size):>10}  {output.folder}{kept}")
            total = f"{len(chosen)} folders, {size_text(sum(output.size for output in chosen))}"
            if given.yes:
                cleaning.remove(chosen)
                print(f"removed: {total}")
            else:
                print(f"unused: {total}" + ("; --yes removes them" if chosen else ""))

    return guarded(work, resumes=False)
