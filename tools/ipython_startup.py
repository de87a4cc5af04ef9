"""Start-up file of the kernels that execute the chapters: warnings are errors, and each kernel reports what it took.

Where the environment variable LVMBOOK_TIMES names a folder, the kernel writes `<folder>/<pid>.json` after every cell.
"""

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path


def turn_warnings_into_errors() -> None:
    """Do it here because PYTHONWARNINGS=error would also break the kernel's own shutdown (ipykernel 7.4)."""
    warnings.simplefilter("error")
    for machinery in ("ipykernel", "jupyter_client", "zmq", "tornado", "asyncio"):
        warnings.filterwarnings("default", module=rf"{machinery}(\.|$)")


def report(result=None) -> None:
    """Write CPU seconds of this process and its peak memory, whole or not at all."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (2**20 if sys.platform == "darwin" else 2**10)
    path = Path(os.environ["LVMBOOK_TIMES"], f"{os.getpid()}.json")
    content = {"cpu_seconds": time.process_time(), "peak_mb": peak_mb, "cwd": os.getcwd(), "first_heading": None}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), "utf-8")
    part.replace(path)


turn_warnings_into_errors()
if os.environ.get("LVMBOOK_TIMES"):
    get_ipython().events.register("post_run_cell", report)
