"""What serves long runs: commands whose results are committed as small files, and the functions that read those."""

from lvmlib.experiments.kept import pretrained as pretrained
from lvmlib.experiments.results import read_result as read_result
