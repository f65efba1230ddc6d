"""What may run at a site and what may leave it."""
