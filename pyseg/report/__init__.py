"""Reports on runs: ``python -m pyseg.report --run <folder> [<folder> ...]``.

A report is one HTML page that needs no other files: facts, learning curves, average precision per
class, precision-recall curves, the reliability of probabilities, the graph of the label correlation
(Figure 3 of the paper), and scores of held-out videos over time. Its charts can be hovered, zoomed
and searched; without
scripts, its tables have their numbers. Several runs are shown side by side. The same runs and
data give the same page.
"""

from pyseg.report.cli import main, report
from pyseg.report.config import ReportConfig
from pyseg.report.runs import read_run
from pyseg.report.sections.label_graph import strongest
from pyseg.report.sections.precision_recall import precision_recall

__all__ = ["ReportConfig", "main", "precision_recall", "read_run", "report", "strongest"]
