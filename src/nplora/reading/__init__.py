"""From a file to an adapter: canonical modules with exact low-rank factors, whatever the file calls them."""
