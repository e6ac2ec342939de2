"""Figures, each drawn by a function from `Results` to a `Drawing`.

Every figure shows one backbone, which can be left out if the study has no other. A function raises
`UserError` if it cannot tell which one, or if a file is missing or lacks a column.
"""
