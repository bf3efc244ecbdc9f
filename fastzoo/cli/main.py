"""The command line: ``fastzoo list | info | pull | push | eval | features | steer | train | data | space``.

Data goes to stdout, everything else to stderr. An expected failure is one line and an exit code
(see ``fastzoo.core.errors``). torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import sys

from fastzoo.cli.app import app
from fastzoo.cli.arguments import debug_first, spread
from fastzoo.cli.browse import info, list_saes
from fastzoo.cli.data import data
from fastzoo.cli.data_build import build, push
from fastzoo.cli.evaluate import evaluate_saes
from fastzoo.cli.features import find_features
from fastzoo.cli.pull import pull
from fastzoo.cli.push import push_saes
from fastzoo.cli.space import space
from fastzoo.cli.steer import steer_sae
from fastzoo.cli.train import train
from fastzoo.core.exit import report_failures

# in the order of the help
app.command("list")(list_saes)
app.command("info")(info)
app.command("pull")(pull)
app.command("push")(push_saes)
app.command("eval")(evaluate_saes)
app.command("features")(find_features)
app.command("steer")(steer_sae)
app.command("train", context_settings={"ignore_unknown_options": True})(train)
data.command("build")(build)
data.command("push")(push)
app.add_typer(data, name="data")
app.add_typer(space, name="space")


def main() -> None:
    """The command ``fastzoo``."""
    report_failures(_run)


def _run() -> None:
    try:
        app(spread(debug_first(sys.argv[1:])), prog_name="fastzoo")
    except SystemExit as end:
        # Typer ends without a word what report_failures has one for.
        for ended in (end.__context__, getattr(end.__context__, "__cause__", None)):
            if isinstance(ended, KeyboardInterrupt | BrokenPipeError):
                raise ended from None
        raise


if __name__ == "__main__":
    main()
