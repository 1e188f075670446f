"""What adapters are made of and what they have to do with each other, from their factors alone.

Nothing of a weight's size is formed, with two stated exceptions: sampled rows of an update (`signs`) and the base
model's own weights (`frames`), one module at a time.
"""
