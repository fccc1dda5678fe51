"""The libp2p host: authenticated channels between the nodes of a mesh. Only this package imports libp2p."""
