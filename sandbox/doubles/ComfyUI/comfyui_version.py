"""TEST DOUBLE, never deploy. The version whose protocol the double speaks; the suffix tells it from the real one."""

__version__ = "0.33.0+double"
