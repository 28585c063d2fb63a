"""Read files, folders of images and bundled samples as rows, one kind of source a module."""
