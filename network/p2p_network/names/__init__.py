"""Names of the mesh: which there are (`zone`), what a query is answered (`answering`), and the server."""
