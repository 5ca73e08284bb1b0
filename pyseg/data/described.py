"""Records that a features.json beside them describes: any features of frames.

Labels, ratings and vocabulary are where YouTube-8M has them.
"""

from pyseg.data.collection import open_records
from pyseg.data.features import FILE
from pyseg.data.formats import Format

FORMAT = Format(
    "features",
    f"frames that {FILE} beside them describes",
    None,
    open_records,
    standardize=True,
    described_by=FILE,
)
