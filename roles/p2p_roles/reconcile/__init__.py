"""How does a cluster become what is declared, and stay it? One step at a time."""
