"""TEST DOUBLE, never deploy: the parsed command line, which a start script may change before the start."""

from __future__ import annotations

from modules.cmd_args import parser

cmd_opts = parser.parse_args()
