"""Test doubles of the upstream applications, for the sandbox only. See README.md beside this file."""
