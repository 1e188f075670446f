"""Proving an output: every module again from the inputs that its recipe names, by another route."""
