"""Files, folders and Hub data sets -> rows, one kind of source a module."""
