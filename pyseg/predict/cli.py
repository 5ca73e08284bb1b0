"""The command ``python -m pyseg.predict``."""

from __future__ import annotations

from collections.abc import Sequence

from pyseg import _cli, distributed
from pyseg._memory import keep_memory
from pyseg.predict.config import PredictConfig
from pyseg.predict.ranking import predict
from pyseg.predict.videos import timeline


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.predict``."""
    keep_memory()
    parser = _cli.make_parser(
        PredictConfig,
        "pyseg.predict",
        "Scores every segment of every video and writes a submission, or draws one video's scores "
        "over time.",
        torchrun=True,
    )
    config = _cli.parse(parser, PredictConfig, argv)
    read = {"data": config.data, "classes": config.classes}
    if config.video is None:
        _cli.check_out("out", config.out, scores=config.scores, **read)
    else:
        _cli.check_out("timeline", config.timeline, **read)
    _cli.check_out("scores", config.scores, **read)
    with distributed.session(distributed.pick_device(config.device)):
        if config.video is None:
            predict(config)
        elif distributed.is_first():
            timeline(config)
