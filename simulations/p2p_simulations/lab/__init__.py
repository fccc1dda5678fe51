"""The lab: real processes in network namespaces, which don't know that they are in a lab."""
