"""WHERE: bytes, and leases on them."""
