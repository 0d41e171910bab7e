"""Who asks for machines: tenants, their quotas, and whose turn it is."""
