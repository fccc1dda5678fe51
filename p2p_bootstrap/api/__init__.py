"""The local API: how does a program on this machine ask the agent? See `service` for the shapes."""
