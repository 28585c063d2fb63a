"""Data for a task: loaded, checked, encoded and split. Knows rows and labels, and neither models nor tensors.

Names come from the modules: `load` from `hftl.data.load`; what a task's class names (`roles`, `readings`, `masks`,
`types`) imports without `datasets`, so that `--help` is quick.
"""
