"""What is to be computed, and computing it: adapters matched module by module, who gives way, batches of work."""
