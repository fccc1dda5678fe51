"""A deterministic world: virtual time, a network and disks that misbehave on purpose, one seed."""
