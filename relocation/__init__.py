"""Move what a host keeps: planned, copied and verified, switched, and only then removed at the old place. Standard library alone."""
