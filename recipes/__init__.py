"""Each module is a recipe: a file to run, to copy and to change. Installed as hftl.recipes."""
