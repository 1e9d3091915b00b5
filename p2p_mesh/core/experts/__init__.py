"""The experts of a mixture of experts: where they lie in its file, how much each is used, and who
has which of them.
"""
