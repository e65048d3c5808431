"""A throw-away Debian 13 machine on this computer: booted, reached over SSH, removed without a trace."""
