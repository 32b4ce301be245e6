"""The command line: parses, calls, prints. No arithmetic."""

import os

# Before numpy is imported: the matrices here are small, and fits run one process per core, whose BLAS threads would
# only wait for each other.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
