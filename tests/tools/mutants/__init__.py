"""Faults that a test of the suite must catch, by file of the source: see tests/mutation.py.

Each is (name, text in the file, what is put in its place, node id of the test below tests/).
"""
