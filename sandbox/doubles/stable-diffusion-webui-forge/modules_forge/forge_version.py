"""TEST DOUBLE, never deploy. The suffix tells the double from the real one."""

version = "2.0.1v1.10.1"
tag = f"f{version}-double"
