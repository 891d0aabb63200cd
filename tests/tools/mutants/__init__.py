"""Bugs that the test suite must catch, by folder of the source: see tests/tools/mutation.py.

MUTANTS = {"PATH::FUNCTION": [(name, fragment, what replaces it, test below tests/)]}

PATH is a file or a folder; in a folder the function is found in whatever file it is. The fragment
must stand once in that function. It may be short: the least expression that makes it unique.
"""
