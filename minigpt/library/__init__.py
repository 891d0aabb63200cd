"""What `import minigpt` offers: models as values, training as a function call.

Everything here delegates to the functions of the other folders, which the commands call as well.
"""
