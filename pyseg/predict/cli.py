"""The command ``python -m pyseg.predict``."""

from __future__ import annotations

from collections.abc import Sequence

from pyseg import _cli, distributed
from pyseg._memory import keep_memory
from pyseg.predict.config import PredictConfig
from pyseg.predict.ranking import predict
from pyseg.predict.videos import check_outputs, file_timelines, timeline


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.predict``."""
    keep_memory()
    parser = _cli.make_parser(
        PredictConfig,
        "pyseg.predict",
        "Scores every segment of every video and writes a submission; or shows when classes occur "
        "in one video.",
        torchrun=True,
    )
    config = _cli.parse(parser, PredictConfig, argv)
    read = {"data": config.data, "classes": config.classes}
    if not config.is_of_one_video:
        _cli.check_out("out", config.out, scores=config.scores, **read)
    check_outputs(config, **read, frames_file=config.frames_file)
    _cli.check_out("scores", config.scores, **read)
    with distributed.session(distributed.pick_device(config.device)):
        if not config.is_of_one_video:
            predict(config)
        elif distributed.is_first():
            if not config.is_of_files:
                timeline(config)
            for _ in file_timelines(config) if config.is_of_files else ():
                pass  # it prints and exports each
