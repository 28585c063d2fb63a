"""The recipes lie beside the package and are installed in it, as hftl.recipes; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["hftl*"]), "hftl.recipes"], package_dir={"hftl.recipes": "recipes"})
