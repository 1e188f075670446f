"""From a fusion to a file: names, layout, numbers, header, and the report of what was done."""
