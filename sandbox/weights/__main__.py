"""Write a store of synthetic weights under the names of the real ones: python -m sandbox.weights DIRECTORY."""

import sys
from pathlib import Path

from sandbox.weights import write_store

if len(sys.argv) != 2:
    sys.exit(__doc__)
for written in write_store(Path(sys.argv[1])):
    print(written)
