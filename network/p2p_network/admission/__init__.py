"""Who is in, who is out, and who says so? Certificates, invitations, revocations, generations of keys."""
