"""Which node initialises a cluster: single-decree Paxos per epoch."""
