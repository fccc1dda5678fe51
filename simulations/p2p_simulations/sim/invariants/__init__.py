"""What must never be in a simulated world, by what it is about: votes, clusters, ledgers, bounds."""
