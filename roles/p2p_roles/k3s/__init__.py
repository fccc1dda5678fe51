"""Driving k3s: what it is started with (spec), its CA and tokens (pki), the process (driver)."""
