"""A stand-in for the k3s executable: its command line, files, ports, protocol and failures; no containers.

What can be seen of k3s from outside it (k3s's own source is the reference) happens here too; what
happens inside containers does not. It never passes for k3s: its version says "simulated". Door-plate:
simulations/README.md; faults on order: `process.py`.
"""

import os

VERSION = f"{os.environ.get('K3S_SIMULATED_VERSION', 'v1.36.0+k3s1')}-simulated"
"""What `k3s --version` and every Node say."""
