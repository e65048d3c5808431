"""All benchmarks, one after the other: `make bench`."""

from benchmarks import noop_deploy

noop_deploy.main()
