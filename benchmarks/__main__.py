"""All benchmarks, one after the other: `make bench`. The sandbox is deployed first, for the one that needs it."""

import subprocess

from benchmarks import adoption, deploy_times, gateway, noop_deploy, relocation, weights

deploy_times.main()
subprocess.run([deploy_times.ATELIER, "deploy", "--host", "sandbox"], check=True, capture_output=True)
noop_deploy.main()
weights.main()
adoption.main()
relocation.main()
gateway.main()
