"""`python -m guard CONFIG_DIR SECRETS_DIR SOCKET`: what entrypoint.py starts beside Caddy."""

import os
import sys
from pathlib import Path

from guard.config import ConfigError, load
from guard.pages import read_bounds
from guard.server import run

config_dir, secrets_dir, socket = map(Path, sys.argv[1:])
try:
    config = load(config_dir, secrets_dir)
except ConfigError as error:
    sys.exit(f"gateway: {error}")
run(config, socket, read_bounds(os.environ))
